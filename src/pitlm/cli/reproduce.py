"""`pit reproduce`: the experiments of the paper, and those that its reviewers asked for.

\b
Examples:
  pit reproduce curriculum
  pit reproduce curriculum temperature --quick
  pit reproduce --seed 0 --seed 1 --out runs/reproduce
  pit reproduce --page results.md --json results.json
  pit reproduce my-experiment.yaml --recipe quickstart

Without a name the command makes all experiments, which takes hours. Several commands with different seeds can run side
by side. An interrupted command goes on where it stopped, and finished runs are only read.
"""

from pathlib import Path

import click

from pitlm.cli.options import PATH, check_output, figures_options, write_figures
from pitlm.io.visible import echo


@click.command()
@click.argument("experiments", nargs=-1)
@click.option("--recipe", default="paper", show_default=True, help="Recipe whose settings the experiments change.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(min=0),
    multiple=True,
    help="A seed; give it again for more. Default: 0 to 4.",
)
@click.option("--quick", is_flag=True, help="One seed, 0: intervals are over items then.")
@click.option("--out", type=PATH, default=Path("runs/reproduce"), show_default=True, help="Folder of all runs.")
@click.option("--page", type=PATH, help="Also write the tables as Markdown, with pictures in a folder beside.")
@click.option("--list", "listed", is_flag=True, help="List the experiments, and make none.")
@figures_options
def reproduce(
    experiments: tuple[str, ...],
    recipe: str,
    seeds: tuple[int, ...],
    quick: bool,
    out: Path,
    page: Path | None,
    listed: bool,
    json_file: Path | None,
    force: bool,
) -> None:
    """Make the paper's experiments where the truth is known, and print their tables.

    EXPERIMENTS are names of packaged experiments, or YAML files.
    """
    from pitlm.reproduce.experiment import experiment_names, find_experiment

    if listed:
        return echo("\n".join(f"{name:18} {find_experiment(name).title}" for name in experiment_names()))
    check_output(json_file, force, "the figures")
    check_output(page, force, "the tables")
    from pitlm.reproduce.page import tables, write_page
    from pitlm.reproduce.reproduce import reproduce as make

    chosen = sorted(set(seeds)) or ([0] if quick else list(range(5)))
    found = make(experiments, recipe, chosen, out, echo)
    echo("\n" + tables(found))
    if page is not None:
        write_page(found, page)
    write_figures(json_file, found)
