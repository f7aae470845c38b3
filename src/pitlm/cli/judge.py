"""`pit judge`: a judge compares two systems' answers, pair by pair.

\b
Examples:
  pit judge ours.json theirs.json -o verdicts.jsonl --judge llm --model gpt-4o-mini \\
      --price 0.15,0.075,0.60 --max-cost 5
  pit judge ours.jsonl theirs.jsonl -o verdicts.jsonl --judge llm --model qwen3 \\
      --base-url http://localhost:8000/v1 --template my-judge.txt
  pit judge ours.jsonl theirs.jsonl -o verdicts.jsonl --judge reward \\
      --model path/to/reward-model-deberta-v3-large-v2
  pit judge better.jsonl answers.jsonl -o verdicts.jsonl --judge reward --model runs/mine/gap/model
  pit evaluate verdicts.jsonl

FIRST and SECOND each hold the answers of one system. Either file is AlpacaEval's model_outputs.json, the output of
`pit improve`, or another .jsonl, .json, .csv or .parquet file. A row has "prompt" (or "messages" or "instruction") and
"response" (or "output", or the field "pit" of `pit improve`). Rows of the two files are paired by "id" if every row has
an "id", else by prompt.

An LLM judge gets each pair twice, once in each order. If its two verdicts disagree, the pair is "inconsistent". Two
equal answers are a tie, and the judge is not asked. A reply has to end with the line "Verdict: A", "Verdict: B" or
"Verdict: tie"; a template of your own has to ask for this line. The template is Jinja and may use {{ first }},
{{ second }}, {{ prompt }} and {{ conversation }}. {{ mark }} is a delimiter that occurs in none of these texts.

Each reply is stored beside the output (or in --cache) when it arrives. After a kill, an error or the cost limit, the
same command goes on, and you pay for no stored reply again. Exit codes: 0 done, 2 an error that you can mend, 3 the
cost limit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pitlm.cli.options import PATH, Command, check_output, option_name, section_options
from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.io.named_parts import part_names
from pitlm.io.visible import echo
from pitlm.judge.protocol import GROUP

KINDS = {"llm": "llm", "reward": "foreign", "oracle": "truth", "scripted": "scripted"}
"""The kinds of judges: the name for `--judge`, and the name in a recipe."""


class JudgeOptions(JudgeSection):
    """A judge as the command line describes one.

    Attributes:
        kind: a language model, a reward or gap model, the known truth of a world, or replies from a file.
        model: llm: name of the model; reward: folder or hub name; scripted: JSON lines, two replies a pair.
        body: further fields of each request, as a JSON object; null removes a field, as for models without a
            temperature: '{"temperature": null, "max_tokens": null, "max_completion_tokens": 4096}'.
        cache: file that stores the replies, so that you pay for no reply twice. Default: beside the output.
    """


def judge_options(*, required: bool) -> Callable[[Command], Command]:
    """Give a command the options that describe a judge, as one argument ``options``: a checked section.

    Args:
        required: whether a judge has to be named. If not, and no judge is named, ``options`` is None.
    """
    names, types = {"kind": "judge", "seed": "judge_seed"}, {"kind": click.Choice(part_names(GROUP, KINDS))}
    how: dict[str, Any] = {"optional": not required, "check": _checked}
    return section_options(JudgeOptions, into="options", names=names, types=types, **how)


def _checked(options: JudgeOptions) -> JudgeSection:
    """The section of a recipe, with the kind as a recipe calls it."""
    from pitlm.run.judges import check_section

    kind = KINDS.get(options.kind, options.kind)
    checked = JudgeSection(**{**options.model_dump(exclude_unset=True), "kind": kind})
    check_section(checked, f"--judge {options.kind}", option_name)
    return checked


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File for the verdicts (JSON lines).")
@judge_options(required=True)
@click.option("--force", is_flag=True, help="Replace the output file. Stored replies are used again.")
def judge(first: Path, second: Path, output: Path, options: JudgeSection, force: bool) -> None:
    """Compare the answers in FIRST with those in SECOND, and say how often the first system wins."""
    judge_to_file(first, second, output, options, force=force)


def judge_to_file(first: Path, second: Path, output: Path, options: JudgeSection, *, force: bool) -> list[VerdictRow]:
    """Judge two files of answers, write the rows, print their tally; an LLM's replies are kept beside the output.

    Raises:
        InputError: as :func:`pitlm.run.judges.judge_answer_files` does, an output that exists already, or all calls
            failed.
    """
    from pitlm.io.atomic import write_json_lines
    from pitlm.io.templates import template
    from pitlm.run.judges import judge_answer_files

    check_output(output, force, "the verdicts")
    if options.kind == "llm" and options.cache is None:
        options = options.model_copy(update={"cache": output.with_name(f"{output.name}.replies.sqlite")})
    rows = judge_answer_files(first, second, options)
    write_json_lines(output, [row.as_dict() for row in rows])
    counts = {verdict: sum(row.verdict is verdict for row in rows) for verdict in Verdict}
    echo(template("pitlm.cli", "judged.j2").render(rows=rows, counts=counts, output=output), nl=False)
    return rows
