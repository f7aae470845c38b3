"""`pit evaluate`: what verdicts say about systems and judges.

\b
Examples:
  pit evaluate verdicts.jsonl
  pit evaluate ours.jsonl theirs.jsonl --baseline original --json figures.json
  pit evaluate results/*/annotations.json --rank
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
from typing import TYPE_CHECKING

import click
from pydantic import Field

from pitlm.cli.judge import judge_options, judge_to_file
from pitlm.cli.options import FILE, NoDevice, check_output, finite, json_option, section_options, write_figures
from pitlm.core.section import Fraction, Section
from pitlm.io.visible import echo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pitlm.core.evaluation_section import JudgeSection
    from pitlm.evaluate.verdict_files import Annotation

PLANNED_TIES = (0.0, 0.1, 0.25, 0.5)
"""Tie rates that `--plan` shows without files."""


class StatisticsSection(Section):
    """How verdicts are counted."""

    rank: bool = Field(False, description="also show rankings of fewer than three systems")
    resamples: int = Field(2000, gt=0, le=10**5, description="number of draws of each bootstrap")
    confidence: Fraction = Field(0.95, description="confidence of each interval")
    seed: int = Field(0, ge=0, description="seed of all resampling")


@click.command()
@click.argument("sources", nargs=-1, type=NoDevice(path_type=Path, exists=True), metavar="[SOURCE]...")
@click.option("--baseline", metavar="NAME", help="System to compare with. Default: the most frequent second system.")
@click.option(
    "--plan",
    "points",
    type=click.FloatRange(0.1, 100),
    callback=finite,
    metavar="POINTS",
    help="Say how many items are needed to show a Delta of POINTS; needs no SOURCE.",
)
@click.option(
    "--labels", type=NoDevice(path_type=Path, exists=True), help="Say how often each judge agrees with these."
)
@json_option
@click.option("--alpaca", type=FILE, help="Also write the verdicts as AlpacaEval annotations.")
@section_options(StatisticsSection, into="statistics")
@click.option("-o", "--output", type=FILE, help="With --judge: file for the verdicts.")
@click.option("--force", is_flag=True, help="Replace existing output files. Stored replies are used again.")
@judge_options(required=False)
def evaluate(
    sources: tuple[Path, ...],
    baseline: str | None,
    points: float | None,
    labels: Path | None,
    json_file: Path | None,
    alpaca: Path | None,
    statistics: StatisticsSection,
    output: Path | None,
    force: bool,
    options: JudgeSection | None,
) -> None:
    """Compute win rates, Deltas, tests, rankings and agreement from verdicts. No judge is asked again.

    A SOURCE is a file of verdicts that `pit judge` wrote (.jsonl), a file of AlpacaEval's annotations (.json), or the
    folder of a finished run. The verdicts of several sources are taken together. Intervals resample items, so several
    verdicts on one item count as one piece of evidence.
    """
    if options is None and output is not None:
        raise click.UsageError("-o: found without --judge")
    wanted = None if points is None else points / 100
    if not sources:
        if wanted is None:
            raise click.UsageError("found no SOURCE, expected at least one, or --plan POINTS")
        return _print_plan(wanted)

    from pitlm.evaluate.labels import accuracies, read_labels
    from pitlm.evaluate.summary import summarise
    from pitlm.evaluate.verdict_files import write_annotations
    from pitlm.report.terminal import print_accuracies, print_summary
    from pitlm.run.results import read_sources

    check_output(json_file, force, "the figures")
    check_output(alpaca, force, "the annotations")
    annotations, known = read_sources(sources) if options is None else (_judged(sources, output, options, force), None)
    rows = [annotation.row for annotation in annotations]
    summary = summarise(rows, baseline=baseline, answered=known, wanted=wanted, **statistics.model_dump())
    print_summary(summary)
    right = accuracies(rows, read_labels(labels), confidence=statistics.confidence) if labels is not None else []
    print_accuracies(right, len(rows))
    write_figures(json_file, {**summary.as_dict(), "labels": [asdict(one) for one in right]})
    if alpaca is not None:
        write_annotations(alpaca, annotations)
        echo(f"{len(annotations):,} annotations written to {alpaca}")


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

    echo(f"Items that show a Delta of {100 * wanted:g} points (two-sided, 5% level, 80% power, exact sign test):")
    for ties in PLANNED_TIES:
        needed = items_needed(wanted, tie_rate=ties)
        echo(f"  {ties:4.0%} ties or inconsistent  {f'{needed:,}' if needed else 'not possible'}")
