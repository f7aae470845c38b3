"""`pit calibrate`: the margin that keeps a promise about harm.

\b
Examples:
  pit calibrate --run runs/quickstart
  pit calibrate --run runs/quickstart --harm 0.05 --rounds 5
  pit calibrate --run runs/quickstart --confidence 0.95 --json curve.json
  pit calibrate --run runs/mine --prompts logged.jsonl

The margin is the gap that a new version has to exceed to replace the answer. The promise is: of all answers that the
loop gets, it makes at most --harm worse. The judge decides which answers are worse: the true utility if it is known,
else the run's held-out reward model. The promise holds with probability --confidence, over the draw of the answers that
the margin was chosen on. It holds for answers of the same kind as these.

More prompts keep more of the gain. To promise 2%, the loop may make about 1.3% worse if the margin is chosen on 1,000
answers, and 1.7% if it is chosen on 5,000. --prompts adds prompts, which need no labels. Each row has "prompt" (a
string or chat messages). Add "response" if the loop will improve the answers of a model other than the run's policy.
If the true utility is the judge, the prompts have to be of its world.

`pit improve --run` then uses the chosen margin, unless the recipe or --margin gives another.
"""

from pathlib import Path

import click

from pitlm.cli.options import PATH, check_output, figures_options, section_options, write_figures
from pitlm.io.visible import echo
from pitlm.loop.calibration import Promise


@click.command()
@click.option("--run", "run_folder", required=True, type=PATH, help="Folder of a finished run.")
@section_options(Promise, into="promise")
@figures_options
def calibrate(run_folder: Path, promise: Promise, json_file: Path | None, force: bool) -> None:
    """Choose the margin of the loop, so that the loop makes at most a given share of answers worse.

    The command chooses the margin on new answers to held-out prompts. No model was trained or evaluated on these
    prompts. It then shows the effect of the margin on the prompts of the evaluation, and stores the margin beside the
    gap model.
    """
    from pitlm.report.terminal import print_margins
    from pitlm.run.calibrate import calibrate_run

    check_output(json_file, force, "the figures")
    made = calibrate_run(run_folder, promise)
    for found in made.values():
        print_margins(found)
    echo(f"\nPicture: {run_folder / 'calibration.svg'}")
    write_figures(json_file, {name: found.as_dict() for name, found in made.items()})
