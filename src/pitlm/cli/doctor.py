"""`pit doctor`: what this machine can run, and what a recipe takes before it is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pitlm.plan.hardware import CARDS

if TYPE_CHECKING:
    from pitlm.core.recipe import DataSection, Recipe
    from pitlm.plan.costs import Workload
    from pitlm.plan.hardware import Hardware

EXAMPLES = """
\b
Examples:
  pit doctor
  pit doctor quickstart
  pit doctor hh-small --data pairs.jsonl --plan
  pit doctor ultrafeedback-llama-8b --hardware h200 --price 3.5 --plan
  pit doctor hh-llama-8b --hardware h100 --devices 2 --pairs 1000000 --json plan.json

Without --hardware the machine at hand is measured for some seconds. The cards' rates are assumed shares of their data
sheets' peaks. More than one device assumes that memory and work divide evenly.
"""


@click.command(epilog=EXAMPLES)
@click.argument("recipe", required=False)
@click.option("--data", help="Pairs to count and measure; default: what is known of the recipe's source.")
@click.option("--pairs", type=click.IntRange(min=1), help="Plan for so many pairs.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace one value of the recipe.")
@click.option("--plan", is_flag=True, help="Show every stage, not only the whole.")
@click.option(
    "--hardware", type=click.Choice(list(CARDS)), help="Plan for this card; default: measure the machine at hand."
)
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="How many of the card.")
@click.option("--price", type=click.FloatRange(min=0), help="Of one device for an hour, in any currency.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures here, too.")
def doctor(
    recipe: str | None,
    data: str | None,
    pairs: int | None,
    overrides: tuple[str, ...],
    plan: bool,
    hardware: str | None,
    devices: int,
    price: float | None,
    output: Path | None,
) -> None:
    """Say what this machine can run, and estimate memory and time of RECIPE before it is started.

    Nothing is downloaded and no hub is asked.
    """
    from pitlm.core.errors import InputError

    if recipe is None:
        if any((data, pairs, overrides, plan, hardware, price)):
            raise InputError("found options of a plan and no recipe, expected one: pit recipes lists them")
        figures = _machine()
    else:
        if devices > 1 and hardware is None:
            raise InputError("--devices: found no --hardware, expected one: this machine is measured as it is")
        figures = _planned(recipe, data, pairs, overrides, plan, hardware, devices, price)
    if output is not None:
        from pitlm.io.atomic import write_text

        write_text(output, json.dumps(figures, indent=2) + "\n")


def _machine() -> dict[str, Any]:
    from dataclasses import asdict

    from pitlm.cli.main import EXTRAS
    from pitlm.plan.machine import look, machine_lines

    machine = look(EXTRAS, Path())
    cards: list[tuple[str, int]] = []
    if "torch" in machine.versions:
        from pitlm.models.devices import accelerators

        cards = accelerators()
    for line in machine_lines(machine, cards):
        click.echo(line)
    return {**asdict(machine), "accelerators": [{"name": name, "memory": memory} for name, memory in cards]}


def _planned(
    name: str,
    data: str | None,
    pairs: int | None,
    overrides: tuple[str, ...],
    every: bool,
    card: str | None,
    devices: int,
    price: float | None,
) -> dict[str, Any]:
    from dataclasses import asdict, replace

    from pitlm.cli.run import read_overrides
    from pitlm.core.packaged_recipes import find_recipe
    from pitlm.core.recipe_file import load_recipe
    from pitlm.plan.plan import plan_lines, plan_run
    from pitlm.plan.shapes import Shape
    from pitlm.plan.workloads import known_workload

    changes = read_overrides(overrides)
    if pairs is not None:  # asks what so much data would take
        changes["data.pairs"] = str(pairs)
    if data is not None:
        changes["data.source"] = json.dumps(data)
    recipe = load_recipe(find_recipe(name), changes)
    shape = Shape.of_model(recipe.model)
    own = recipe.data.source
    source = data or (own if own and own != "pocket" and Path(own).exists() else None)
    work, where = _measured(source, recipe.data) if source else known_workload(recipe)
    work = replace(work, pairs=pairs or min(work.pairs, recipe.data.pairs or work.pairs))
    hardware = replace(_hardware(recipe, work, card, devices), price=price)
    plan = plan_run(recipe, shape, work, hardware)
    for line in plan_lines(plan, shape, work, where, every=every):
        click.echo(line)
    totals = {"seconds": plan.seconds, "peak": plan.peak, "fits": plan.fits, "cost": plan.cost}
    return {**asdict(plan), "workload": asdict(work), "shape": asdict(shape), **totals}


def _measured(source: str, limits: DataSection) -> tuple[Workload, str]:
    """Pairs counted and their lengths from characters: four to a token, as in English. A tokenizer may be far away.

    What the recipe trims is left out of each: of a few long prompts the mean would be far from what is read.
    """
    from pitlm.data.dataset import load_preferences
    from pitlm.plan.costs import Workload

    kept = load_preferences(source, skip_invalid=True, progress=True).preferences
    most = (limits.max_prompt_tokens, limits.max_response_tokens, limits.max_response_tokens)
    letters = [
        (sum(len(m.content) for m in pair.prompt.messages), len(pair.chosen), len(pair.rejected)) for pair in kept
    ]
    x, w, l = (
        sum(min(count / 4, limit) for count in part) / len(kept)
        for part, limit in zip(zip(*letters, strict=True), most, strict=True)
    )
    distinct = len({pair.prompt.key for pair in kept}) / len(kept)
    return Workload(len(kept), x, w, l, prompts=distinct), f"{source}, four characters a token"


def _hardware(recipe: Recipe, work: Workload, card: str | None, devices: int) -> Hardware:
    from pitlm.plan.hardware import assumed

    if card is not None:
        return assumed(card, recipe.model.dtype, devices=devices)
    from pitlm.plan.rates import measure_rates

    click.echo("Measuring this machine for some seconds ...", err=True)
    return measure_rates(recipe, work)
