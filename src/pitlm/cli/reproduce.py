"""`pit reproduce`: the experiments of the paper, and those that its reviewers asked for.

\b
Examples:
  pit reproduce curriculum
  pit reproduce curriculum temperature --quick
  pit reproduce --seed 3 --out runs/reproduce
  pit reproduce --page results.md --json results.json
  pit reproduce my-experiment.yaml --recipe quickstart

Without a name the command runs all experiments, which takes hours. With one seed, the intervals are over items. Several
commands with different seeds can run side by side. An interrupted command goes on where it stopped, and does not repeat
finished runs.
"""

from pathlib import Path

import click

from pitlm.cli.options import check_output, figures_options, section_options, write_figures
from pitlm.core.section import FilePath, NonNegativeInt, PositiveInt, Section
from pitlm.io.visible import echo


class Reproduction(Section):
    """What runs, and where the results go.

    Attributes:
        recipe: recipe whose settings the experiments change.
        seeds: number of seeds; 3 runs the seeds 0, 1 and 2.
        seed: run only this seed.
        quick: run only seed 0.
        out: folder of all runs; default: runs/reproduce.
        page: also write the tables to this Markdown file, with pictures in a folder beside it, NAME.pictures.
        update: redo stages whose settings have changed.
        list: list the experiments, and run none.
    """

    recipe: str = "paper"
    seeds: PositiveInt = 5
    seed: NonNegativeInt | None = None
    quick: bool = False
    out: FilePath = Path("runs/reproduce")
    page: FilePath | None = None
    update: bool = False
    list: bool = False


@click.command()
@click.argument("experiments", nargs=-1)
@section_options(Reproduction, into="asked")
@figures_options
def reproduce(experiments: tuple[str, ...], asked: Reproduction, json_file: Path | None, force: bool) -> None:
    """Run the paper's experiments where the truth is known, and print their tables.

    EXPERIMENTS are names of packaged experiments, or YAML files.
    """
    from pitlm.reproduce.experiment import experiment_names, find_experiment

    if asked.list:
        return echo("\n".join(f"{name:18} {find_experiment(name).title}" for name in experiment_names()))
    if len(given := sorted(asked.model_fields_set & {"quick", "seed", "seeds"})) > 1:
        raise click.UsageError(f"found --{' and --'.join(given)}, expected one of them")
    check_output(json_file, force, "the figures")
    check_output(asked.page, force, "the tables")
    check_output(asked.page and asked.page.with_suffix(".pictures"), force, "the pictures", "*.svg")
    from pitlm.reproduce.page import tables, write_page
    from pitlm.reproduce.reproduce import reproduce as make

    first, count = (asked.seed, 1) if asked.seed is not None else (0, 1 if asked.quick else asked.seeds)
    found = make(experiments, asked.recipe, range(first, first + count), asked.out, echo, update=asked.update)
    echo("\n" + tables(found))
    if asked.page is not None:
        write_page(found, asked.page)
    write_figures(json_file, found)
