"""`pit improve`: better versions of one answer, or of a file of answers."""

from __future__ import annotations

import math
from pathlib import Path

import click

from pitlm.cli.outputs import check_output

EXAMPLES = """
\b
Examples:
  pit improve --run runs/quickstart --prompt "lamp : price nine color red size small . price ?" \\
      --response "silly question . price nine . well anyway ."
  pit improve answers.jsonl -o better.jsonl --run runs/quickstart
  pit improve answers.jsonl -o better.jsonl --improver path/to/model --gap path/to/model --rounds 5

FILE is .jsonl, .json, .csv or .parquet. A row has "prompt" (a string or chat messages) and "response"; without
"response", the run's policy answers first. The output has the rows in their order, with their own fields and "final",
"original", "rounds" and "stop_reason".
"""


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"found {value}, expected a finite number")
    return value


@click.command(epilog=EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the improved answers go (JSON lines).")
@click.option("--run", "run_folder", type=click.Path(path_type=Path), help="A finished run; gives models and settings.")
@click.option("--improver", type=click.Path(path_type=Path), help="An improver's folder, instead of the run's.")
@click.option("--gap", type=click.Path(path_type=Path), help="A gap model's folder, instead of the run's.")
@click.option("--prompt", help="One prompt, instead of a file.")
@click.option("--response", help="The answer to improve, beside --prompt.")
@click.option("--rounds", type=click.IntRange(min=1), help="At most this many rounds. Default: the run's, or 3.")
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    callback=_finite,
    help="The gap that a proposal has to exceed to replace the answer. Default: the run's, or 0.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    callback=_finite,
    help="Of the improver; 0 is greedy. Default: the run's, or 0.4.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**31 - 1),
    default=0,
    show_default=True,
    help="Of the sampling; same seed, same answers.",
)
@click.option("--force", is_flag=True, help="Replace the output file.")
def improve(
    file: Path | None,
    output: Path | None,
    run_folder: Path | None,
    improver: Path | None,
    gap: Path | None,
    prompt: str | None,
    response: str | None,
    rounds: int | None,
    margin: float | None,
    temperature: float | None,
    seed: int,
    force: bool,
) -> None:
    """Improve one answer, or each answer of FILE, and say why each loop stopped."""
    from pitlm.core.errors import InputError

    if (file is None) == (prompt is None):
        raise InputError("give either a FILE of answers or --prompt (with --response)")
    if file is not None and response is not None:
        raise InputError("--response: found beside FILE, expected beside --prompt")
    for name, text in (("--prompt", prompt), ("--response", response)):
        if text is not None and text != text.encode(errors="replace").decode():
            raise InputError(f"{name}: found bytes that are not UTF-8, expected text")
    if prompt is not None and not prompt.strip():
        raise InputError("--prompt: found nothing, expected the question that was answered")
    if file is not None and output is None:
        raise InputError("-o: found nothing, expected the file that the improved answers go to")
    if output is not None:
        check_output(output, force, "the improved answers")
    if run_folder is None and (improver is None or gap is None):
        raise InputError("give --run (a finished run), or both --improver and --gap")

    from pitlm.pipeline.improving import improve_answers

    improve_answers(
        file=file,
        output=output,
        run=run_folder,
        improver=improver,
        gap=gap,
        prompt=prompt,
        response=response,
        rounds=rounds,
        margin=margin,
        temperature=temperature,
        seed=seed,
    )
