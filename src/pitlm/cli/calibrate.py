"""`pit calibrate`: the margin that keeps a promise about harm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pitlm.evaluate.margins import Calibrated

EXAMPLES = """
\b
Examples:
  pit calibrate --run runs/quickstart
  pit calibrate --run runs/quickstart --harm 0.05 --rounds 5
  pit calibrate --run runs/quickstart --confidence 0.95 --json curve.json
  pit calibrate --run runs/mine --prompts logged.jsonl

A promise of 2% takes about 1.3% of 1,000 answers made worse, and 1.7% of 5,000: further --prompts, which need no
labels, keep more of the gain. A row of them has "prompt" (a string or chat messages), and "response" where the loop
will improve the answers of another model than the run's policy.

The promise: of all answers that the loop gets, at most --harm become worse in the eyes of the judge (the truth in the
pocket world, else the run's held-out R_P), with --confidence over the answers that the margin was chosen on. It holds
for answers of the kind that it was calibrated on. `pit improve --run` then uses that margin, unless the recipe or
--margin gives another.
"""


@click.command(epilog=EXAMPLES)
@click.option("--run", "run_folder", required=True, type=click.Path(path_type=Path), help="A finished run.")
@click.option(
    "--harm",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.02,
    show_default=True,
    help="The share of answers that may be made worse.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="How sure that promise has to be.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), help="Rounds of the loop that is promised for. Default: the run's."
)
@click.option(
    "--items", type=click.IntRange(min=1), help="Choose on at most this many answers. Default: all there are."
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="A file of further prompts to choose on, in none of the run's folds; --items counts them too.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the figures here."
)
def calibrate(
    run_folder: Path,
    harm: float,
    confidence: float,
    rounds: int | None,
    items: int | None,
    prompts: Path | None,
    json_file: Path | None,
) -> None:
    """Choose the margin of the loop so that at most a wanted share of answers is made worse.

    It is chosen on fresh answers to held-out prompts that nothing was trained or evaluated on, shown on the prompts of
    the evaluation, and stored beside the gap model.
    """
    import json

    from pitlm.evaluate.margins import Promise
    from pitlm.io.atomic import write_text
    from pitlm.io.console import make_console
    from pitlm.run.calibrate import calibrate_run

    made = calibrate_run(run_folder, Promise(harm, confidence), rounds=rounds, items=items, prompts=prompts)
    console = make_console()
    for found in made.values():
        _print(console, found)
    console.print(f"\nPicture: {run_folder / 'calibration.svg'}", highlight=False)
    if json_file is not None:
        write_text(json_file, json.dumps({name: found.as_dict() for name, found in made.items()}, indent=2) + "\n")
        click.echo(f"Figures written to {json_file}")


def _print(console: Console, found: Calibrated) -> None:
    from rich.table import Table

    from pitlm.evaluate.margins import row

    made, rounds = found.calibration, found.calibration.settings.rounds
    console.print()
    console.print(
        f"{made.scorer}: chosen on {made.items} fresh answers, up to {rounds} rounds, judge: {made.judge}", style="bold"
    )
    table = Table()
    for column in ("margin", "made worse [95%]", "gain", "of always", "tokens", "of always"):
        table.add_column(column, justify="right")
    for outcome in sorted({*found.curve, found.chosen}, key=lambda one: one.margin):
        name = f"{outcome.margin:.4g}" + (" *" if outcome.margin == found.chosen.margin else "")
        _add(table, name, row(outcome), row(found.always))
    _add(table, "always accept", row(found.always), row(found.always), section=True)
    _add(table, "held out: *", row(found.held_out), row(found.held_out_always))
    _add(table, "held out: always", row(found.held_out_always), row(found.held_out_always))
    console.print(table)
    for sentence in sentences(found):
        console.print(sentence, highlight=False)


def _add(table: Table, name: str, outcome: dict[str, Any], always: dict[str, Any], *, section: bool = False) -> None:
    if section:
        table.add_section()
    harm = outcome["harm"]
    table.add_row(
        name,
        f"{100 * harm['estimate']:.1f}% [{100 * harm['low']:.1f}, {100 * harm['high']:.1f}]",
        f"{outcome['gain']:+.3f}",
        f"{100 * outcome['gain'] / always['gain']:.0f}%" if always["gain"] else "-",
        f"{outcome['tokens']:.1f}",
        f"{100 * outcome['tokens'] / always['tokens']:.0f}%" if always["tokens"] else "-",
    )


def sentences(found: Calibrated) -> list[str]:
    """What was found, for a reader who wants no table."""
    import math

    from pitlm.loop.margin import items_needed

    made, labels = found.calibration, found.labels
    if math.isfinite(made.margin):
        first = (
            f"* the margin: at most {made.harm:.1%} of such answers are made worse, with confidence "
            f"{made.confidence:.0%}."
        )
    else:
        needed = items_needed(made.harm, made.confidence)
        why = (
            f"it takes {needed} answers to promise this" if made.items < needed else "every margin makes too many worse"
        )
        first = f"No margin keeps the promise ({why}): the loop will change nothing. Ask for a larger --harm."
    alone = found.labels_alone.margin
    asked = (
        f"the labels by themselves would ask for {alone:.4g}" if math.isfinite(alone) else "no margin would do by them"
    )
    return [
        first,
        f"On {labels.items} held-out pairs, one response proposed in place of the other, the labeller would find "
        f"{labels.harm:.1%} made worse; {asked}.",
    ]
