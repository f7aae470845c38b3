"""`pit run`: carries out a recipe, from pairs to report.

\b
Examples:
  pit run quickstart
  pit run hh-smol --data mypairs.jsonl
  pit run my-recipe.yaml --data path/to/pairs --set curriculum.rl.beta=0.1
  pit run quickstart --seed 3 --out runs/seed-3
  pit run quickstart --accelerate cpu
  pit run hh-llama-8b --data mypairs.jsonl --accelerate fsdp2

If a run is interrupted, give the same command again. Finished stages are skipped, and the run goes on where it stopped.
"""

import time
from pathlib import Path
from typing import Any

import click

from pitlm.cli.options import PATH, columns_option, overrides_option


@click.command()
@click.argument("recipe")
@click.option("--data", help="Preference pairs: a file, a folder, or a hub name (see `pit data --help`).")
@columns_option
@click.option("--out", type=PATH, help="Folder of the run. Default: runs/NAME, where NAME is the recipe's name.")
@click.option("--seed", type=click.IntRange(min=0), help="Replace the recipe's seed.")
@overrides_option
@click.option("--update", is_flag=True, help="Redo stages whose settings or data have changed.")
@click.option("--skip-invalid", is_flag=True, help="Set invalid rows aside in data/rejects.jsonl, instead of stopping.")
@click.option("--until", metavar="STAGE", help="Stop after this stage, e.g. gap. An unknown name lists the stages.")
@click.option(
    "--accelerate",
    metavar="CONFIG",
    help="Train on several processes: ddp, fsdp2, zero2, zero3, cpu, or a file that `accelerate config` wrote.",
)
def run(
    recipe: str,
    data: str | None,
    columns: dict[str, str] | None,
    out: Path | None,
    seed: int | None,
    overrides: tuple[str, ...],
    skip_invalid: bool,
    accelerate: str | None,
    **how: Any,
) -> None:
    """Train an improver from preference pairs, and compare it with baselines.

    RECIPE is the name of a packaged recipe (see `pit recipes`) or a YAML file. The folder of the run gets a folder for
    each stage, with the stage's model, and report.html. Give the folder to `pit improve --run` and other verbs.
    """
    from pitlm.core.packaged_recipes import find_launch
    from pitlm.core.recipe_file import named_recipe

    given = {"data.source": data, "data.columns": columns, "seed": seed, "data.skip_invalid": skip_invalid or None}
    loaded = named_recipe(recipe, overrides, given)
    launch = find_launch(accelerate) if accelerate is not None else None
    begin = time.perf_counter()

    from pitlm.run.run_recipe import run_recipe

    run_recipe(loaded, out or Path("runs") / loaded.name, begin=begin, accelerate=launch, **how)
