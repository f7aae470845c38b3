"""`pit evaluate`: what verdicts say about systems and judges.

\b
Examples:
  pit evaluate verdicts.jsonl
  pit evaluate ours.jsonl theirs.jsonl --baseline original --json figures.json
  pit evaluate results/*/annotations.json --html leaderboard.html
  pit evaluate verdicts.jsonl --alpaca annotations.json
  pit evaluate verdicts.jsonl --labels gold.jsonl
  pit evaluate runs/mine
  pit evaluate --plan 5
  pit evaluate ours.json theirs.json --judge llm --model gpt-4o-mini -o verdicts.jsonl

--labels takes people's verdicts, or preferences in any shape that `pit data inspect` reads (Chatbot Arena, JudgeBench,
RewardBench, LLMBar, PandaLM, ...).

With --judge, the command first judges two files of answers, as `pit judge` does. If the command is killed, the same
command goes on.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import Field

from pitlm.cli.judge import judge_options, judge_to_file
from pitlm.cli.options import FILE, NoDevice, check_output, section_options, write_figures
from pitlm.core.section import Fraction, NonNegativeInt, Section
from pitlm.io.visible import echo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pitlm.core.evaluation_section import JudgeSection
    from pitlm.evaluate.verdict_files import Annotation

MANY = 10
"""Differences between more systems than this are printed only with `--differences`."""
FILES = dict.fromkeys(("figures", "html", "alpaca"), FILE)
PLANNED_TIES = (0.0, 0.1, 0.25, 0.5)
"""Tie rates that `--plan` shows without files."""


class EvaluateSection(Section):
    """What is asked of the verdicts, and how they are counted.

    Attributes:
        plan: print how many items you need to show a Delta of this many points; needs no SOURCE.
        baseline: system to compare with; default: the one that is compared with the most others.
        labels: say how often each judge agrees with the labels in this file.
        figures: also write the figures to this file.
        rank: also show rankings of fewer than three systems.
        differences: print the differences between more than 10 systems, too.
        html: also write one page to this file: leaderboard, plots, every difference.
        alpaca: also write the verdicts to this file, as AlpacaEval annotations.
        resamples: number of draws of each bootstrap; the bootstrap of Elo always has 500.
        confidence: confidence of each interval.
        seed: seed of all resampling.
        force: replace existing output files. Stored replies are used again.
    """

    plan: float | None = Field(None, ge=0.1, le=100)
    baseline: str | None = None
    labels: Path | None = None
    figures: Path | None = None
    rank: bool = False
    differences: bool = False
    html: Path | None = None
    alpaca: Path | None = None
    resamples: int = Field(2000, gt=0, le=10**5)
    confidence: Fraction = 0.95
    seed: NonNegativeInt = 0
    force: bool = False


@click.command()
@click.argument("sources", nargs=-1, type=NoDevice(path_type=Path, exists=True), metavar="[SOURCE]...")
@section_options(EvaluateSection, into="asked", names={"figures": "json"}, types=FILES)
@click.option("-o", "--output", type=FILE, help="With --judge: file for the verdicts.")
@judge_options(required=False)
def evaluate(
    sources: tuple[Path, ...], asked: EvaluateSection, output: Path | None, options: JudgeSection | None
) -> None:
    """Compute win rates, Deltas, tests, rankings and agreement from verdicts. Without --judge no judge is asked.

    A SOURCE is a file of verdicts that `pit judge` wrote (.jsonl), a file of AlpacaEval's annotations (.json), or the
    folder of a finished run. The verdicts of several sources are taken together. Intervals are over items, so several
    verdicts on one item count as one piece of evidence.
    """
    if options is None and output is not None:
        raise click.UsageError("-o: found without --judge")
    wanted, force = None if asked.plan is None else asked.plan / 100, asked.force
    if not sources:
        if wanted is None:
            raise click.UsageError("found no SOURCE, expected at least one, or --plan POINTS")
        if asked.model_fields_set - {"plan", "force"}:
            raise click.UsageError("--plan: found other options and no SOURCE, expected --plan alone, or a SOURCE")
        return _print_plan(wanted)

    from pitlm.evaluate.labels import accuracies, read_labels
    from pitlm.evaluate.summary import summarise
    from pitlm.evaluate.verdict_files import write_annotations
    from pitlm.report.terminal import print_accuracies, print_summary
    from pitlm.run.results import read_sources

    for file, what in ((asked.figures, "the figures"), (asked.alpaca, "the annotations"), (asked.html, "the page")):
        check_output(file, force, what)
    if asked.labels in sources:
        raise click.UsageError(f"--labels: found {asked.labels}, a SOURCE, expected labels from elsewhere")
    label = read_labels(asked.labels) if asked.labels is not None else None
    annotations, known = read_sources(sources) if options is None else (_judged(sources, output, options, force), None)
    rows = [annotation.row for annotation in annotations]
    how = asked.model_dump(include={"baseline", "rank", "resamples", "confidence", "seed"})
    summary = summarise(rows, answered=known, wanted=wanted, **how)
    print_summary(summary, differences=asked.differences or len({s.system for s in summary.systems}) <= MANY)
    right = accuracies(rows, label, confidence=asked.confidence) if label is not None else []
    print_accuracies(right, len(rows))
    write_figures(asked.figures, {**summary.as_dict(), "labels": [asdict(one) for one in right]})
    if asked.html is not None:
        from pitlm.io.atomic import write_text
        from pitlm.report.pages import leaderboard_page

        write_text(asked.html, leaderboard_page(summary))
        echo(f"Page written to {asked.html}")
    if asked.alpaca is not None:
        write_annotations(asked.alpaca, annotations)
        echo(f"{len(annotations):,} annotations written to {asked.alpaca}")


def _judged(files: Sequence[Path], output: Path | None, options: JudgeSection, force: bool) -> list[Annotation]:
    """The verdicts on two files of answers, each with the fields of an annotation of AlpacaEval."""
    if len(files) != 2 or any(file.is_dir() for file in files):
        found = "a folder" if len(files) == 2 else f"{len(files)} files"
        raise click.UsageError(f"--judge: found {found}, expected two files, with the answers of a system each")
    if output is None:
        raise click.UsageError("-o: found nothing beside --judge, expected the file that the verdicts go to")
    from pitlm.data.items import read_comparisons
    from pitlm.evaluate.verdict_files import Annotation

    first, second = files
    rows = judge_to_file(first, second, output, options, force=force)
    return [
        Annotation(row, {"instruction": c.prompt.text, "output_1": c.second, "output_2": c.first})
        for row, c in zip(rows, read_comparisons(first, second), strict=True)
    ]


def _print_plan(wanted: float) -> None:
    from pitlm.evaluate.significance import items_needed
    from pitlm.io.templates import template

    words: Any = template("pitlm.report", "summary.j2").module
    echo(words.planned(100 * wanted, {ties: items_needed(wanted, tie_rate=ties) for ties in PLANNED_TIES}), nl=False)
