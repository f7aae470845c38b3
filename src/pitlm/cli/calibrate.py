"""`pit calibrate`: the margin that keeps a promise about harm.

\b
Examples:
  pit calibrate --run runs/quickstart
  pit calibrate --run runs/quickstart --harm 0.05 --rounds 5
  pit calibrate --run runs/quickstart --confidence 0.95 --json curve.json
  pit calibrate --run runs/mine --prompts logged.jsonl

The margin is the gap that a new version has to exceed to replace the answer. The promise is: of all answers that the
loop gets, it makes at most --harm worse. The judge decides which answers are worse: in the pocket world the true
utility, elsewhere the run's held-out reward model. The promise holds with probability --confidence, over the draw of
the answers that the margin was chosen on. It holds for answers of the same kind as these.

More prompts keep more of the gain. To promise 2%, the loop may make about 1.3% worse if the margin is chosen on 1,000
answers, and 1.7% if it is chosen on 5,000. --prompts adds prompts, which need no labels. Each row has "prompt" (a
string or chat messages). Add "response" if the loop will improve the answers of a model other than the run's policy.

`pit improve --run` then uses the chosen margin, unless the recipe or --margin gives another.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pitlm.cli.options import PATH, json_option, section_options, write_figures
from pitlm.loop.calibration import Promise

if TYPE_CHECKING:
    from rich.table import Table

    from pitlm.loop.margin import Calibrated, Outcome


@click.command()
@click.option("--run", "run_folder", required=True, type=PATH, help="Folder of a finished run.")
@section_options(Promise, into="promise")
@json_option
def calibrate(run_folder: Path, promise: Promise, json_file: Path | None) -> None:
    """Choose the margin of the loop, so that the loop makes at most a given share of answers worse.

    The command chooses the margin on new answers to held-out prompts. No model was trained or evaluated on these
    prompts. It then shows the effect of the margin on the prompts of the evaluation, and stores the margin beside the
    gap model.
    """
    from pitlm.io.console import make_console
    from pitlm.run.calibrate import calibrate_run

    made = calibrate_run(run_folder, promise)
    console = make_console()
    for found in made.values():
        known = found.calibration
        chosen_on = f"chosen on {known.items} fresh answers, up to {known.settings.rounds} rounds"
        console.print()
        console.print(f"{known.scorer}: {chosen_on}, judge: {known.judge}", style="bold")
        console.print(outcome_table(found))
        for sentence in found.sentences():
            console.print(sentence, highlight=False)
    console.print(f"\nPicture: {run_folder / 'calibration.svg'}", highlight=False)
    write_figures(json_file, {name: found.as_dict() for name, found in made.items()})


def outcome_table(found: Calibrated) -> Table:
    """One row for each margin, then rows for "always accept" and for the items that had no part in the choice."""
    from rich.table import Table

    table = Table()
    for column in ("margin", "made worse [95%]", "gain", "of always", "tokens", "of always"):
        table.add_column(column, justify="right")

    def add_row(name: str, outcome: Outcome, always: Outcome) -> None:
        harm = outcome.as_dict()["harm"]
        table.add_row(
            name,
            f"{harm['estimate']:.1%} [{100 * harm['low']:.1f}, {100 * harm['high']:.1f}]",
            f"{outcome.gain:+.3f}",
            f"{outcome.gain / always.gain:.0%}" if always.gain else "-",
            f"{outcome.tokens:.1f}",
            f"{outcome.tokens / always.tokens:.0%}" if always.tokens else "-",
        )

    for outcome in sorted({*found.curve, found.chosen}, key=lambda one: one.margin):
        mark = " *" if outcome.margin == found.chosen.margin else ""
        add_row(f"{outcome.margin:.4g}{mark}", outcome, found.always)
    table.add_section()
    add_row("always accept", found.always, found.always)
    add_row("held out: *", found.held_out, found.held_out_always)
    add_row("held out: always", found.held_out_always, found.held_out_always)
    return table
