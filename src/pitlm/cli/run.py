"""`pit run`: a recipe, from pairs to report."""

from __future__ import annotations

import time
from pathlib import Path

import click

EXAMPLES = """
\b
Examples:
  pit run quickstart
  pit run recipes/hh-small.yaml --data path/to/pairs
  pit run hh-small --data mypairs.jsonl --set curriculum.rl.beta=0.1
  pit run quickstart --seed 3 --out runs/seed-3
  pit run quickstart --accelerate cpu
  pit run hh-llama-8b --data mypairs.jsonl --accelerate fsdp2

The same command again goes on where an interrupted run stopped, and skips what is done.
"""


@click.command(epilog=EXAMPLES)
@click.argument("recipe")
@click.option("--data", help="Preference pairs: a file, a folder, or a hub name (see pit data --help).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run. Default: runs/ and the recipe's name.")
@click.option("--seed", type=click.IntRange(min=0), help="Replaces the recipe's seed.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace one value, e.g. loop.rounds=5.")
@click.option("--update", is_flag=True, help="Redo stages whose settings or data have changed.")
@click.option(
    "--skip-invalid",
    is_flag=True,
    help="Set invalid rows aside in data/rejects.jsonl, instead of stopping.",
)
@click.option("--until", metavar="STAGE", help="Stop after this stage, e.g. gap; an unknown name lists them.")
@click.option(
    "--accelerate",
    metavar="CONFIG",
    help="Train on several processes: ddp, fsdp2, zero2, zero3, cpu, or a file that `accelerate config` wrote.",
)
def run(
    recipe: str,
    data: str | None,
    out: Path | None,
    seed: int | None,
    overrides: tuple[str, ...],
    update: bool,
    skip_invalid: bool,
    until: str | None,
    accelerate: str | None,
) -> None:
    """Train an improver from preference pairs and compare it honestly.

    RECIPE is a packaged name (see `pit recipes`) or a YAML file. The run folder then holds report.html, a folder for
    each stage with its model, and what `pit improve --run` needs.
    """
    import json

    from pitlm.core.packaged_recipes import find_launch, find_recipe
    from pitlm.core.recipe_file import load_recipe

    changes = read_overrides(overrides)
    if data is not None:
        changes["data.source"] = json.dumps(data)  # overrides are YAML, where 2024-11-25 would be a date
    if seed is not None:
        changes["seed"] = str(seed)
    if skip_invalid:
        changes["data.skip_invalid"] = "true"
    loaded = load_recipe(find_recipe(recipe), changes)
    launch = find_launch(accelerate) if accelerate is not None else None
    begin = time.perf_counter()

    from pitlm.run.run_recipe import run_recipe

    out = out or Path("runs") / loaded.name
    run_recipe(loaded, out, update=update, until=until, begin=begin, accelerate=launch)


def read_overrides(items: tuple[str, ...]) -> dict[str, str]:
    """What the options `--set KEY=VALUE` say, by key.

    Raises:
        InputError: one has no key or no value.
    """
    from pitlm.core.errors import InputError

    changes = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise InputError(f"--set: found {item!r}, expected KEY=VALUE, for example loop.rounds=5")
        changes[key] = value
    return changes
