"""`pit doctor`: what this machine can run, and what a recipe takes before it is started.

\b
Examples:
  pit doctor
  pit doctor quickstart
  pit doctor hh-smol --data pairs.jsonl --plan
  pit doctor quickstart --beside runs/quickstart
  pit doctor ultrafeedback-llama-8b --hardware h200 --price 3.5 --plan
  pit doctor hh-llama-8b --hardware h100 --devices 2 --pairs 1000000 --json plan.json

Without --hardware the command measures this machine for some seconds. With --hardware the estimate assumes that the
card reaches a fixed share of the peak rates in its data sheet. With several devices the estimate assumes that memory
and work divide evenly.
"""

from dataclasses import asdict, replace
from pathlib import Path

import click
from pydantic import Field

from pitlm.cli.main import EXTRAS
from pitlm.cli.options import check_output, figures_options, overrides_option, section_options, write_figures
from pitlm.core.errors import InputError
from pitlm.core.section import NonNegativeFloat, PositiveInt, Section
from pitlm.io.templates import template
from pitlm.io.visible import echo
from pitlm.plan.hardware import CARDS, assumed, look


class PlanSection(Section):
    """What to plan for.

    Attributes:
        data: pairs to count and measure; default: the known figures of the recipe's own data.
        pairs: plan for this many pairs.
        plan: show every stage, not only the total.
        hardware: plan for this card; default: measure this machine.
        devices: number of cards.
        price: price of a device for an hour.
        beside: show beside the plan how long the stages of this run took, and how much memory they held.
    """

    data: str | None = None
    pairs: PositiveInt | None = None
    plan: bool = False
    hardware: str | None = None
    devices: int = Field(1, ge=1, le=10**6)
    price: NonNegativeFloat | None = None
    beside: Path | None = None


@click.command()
@click.argument("recipe", required=False)
@overrides_option
@section_options(PlanSection, into="asked", types={"hardware": click.Choice(list(CARDS))})
@figures_options
def doctor(
    recipe: str | None, overrides: tuple[str, ...], asked: PlanSection, json_file: Path | None, force: bool
) -> None:
    """Say what this machine can run, and estimate the memory and time that RECIPE needs.

    The command downloads nothing and asks no hub.
    """
    check_output(json_file, force, "the figures")
    if recipe is None:
        if overrides or asked.model_fields_set - {"devices"}:
            raise InputError("found options of a plan and no recipe, expected one: pit recipes lists them")
        found = look(EXTRAS, Path())
        echo(template("pitlm.plan", "machine.j2").render(machine=found), nl=False)
        return write_figures(json_file, found, quiet=True)
    data, pairs, hardware, beside = asked.data, asked.pairs, asked.hardware, asked.beside
    if asked.devices > 1 and hardware is None:
        raise InputError("--devices: found no --hardware, expected one: this machine is measured as it is")
    from pitlm.core.recipe_file import named_recipe
    from pitlm.plan.plan import plan_run
    from pitlm.plan.sizes import Shape, known_workload, measured_workload
    from pitlm.run.folder import stage_record

    chosen = named_recipe(recipe, overrides, {"data.pairs": pairs, "data.source": data})
    shape, source = Shape.of_model(chosen.model), chosen.data.source
    local = source is not None and not chosen.data.world and (data is not None or Path(source).exists())
    work, where = measured_workload(source, chosen.data) if source and local else known_workload(chosen)
    if not chosen.data.world:
        work = replace(work, pairs=pairs or min(work.pairs, chosen.data.pairs or work.pairs))
    if hardware is not None:
        chosen = chosen.with_dtype(native_bfloat16=True)  # as all GPUs of the table do
        machine = replace(assumed(hardware, chosen.model.dtype), devices=asked.devices)
    else:
        from pitlm.models.machine import native_bfloat16
        from pitlm.plan.rates import measure_rates

        chosen = chosen.with_dtype(native_bfloat16=native_bfloat16())
        echo("Measuring this machine for some seconds ...", err=True)
        machine = measure_rates(chosen, work)
    made = plan_run(chosen, shape, work, replace(machine, price=asked.price))
    records = {stage.name: stage_record(beside, stage.name) for stage in made.stages} if beside else {}
    done = {name: record for name, record in records.items() if record and record["status"] == "done"}
    took, held = ({name: record.get(key) for name, record in done.items()} for key in ("seconds", "memory"))
    if beside and not took:
        raise InputError(f"{beside}: found no finished stage, expected the folder of a run of {chosen.name}")
    about = {"plan": made, "shape": shape, "work": work, "where": where, "every": asked.plan}
    echo(template("pitlm.plan", "plan.j2").render(about, took=took, held=held), nl=False)
    given = {"took": took, "held": held, "workload": asdict(work), "shape": asdict(shape)}
    totals = {"seconds": made.seconds, "peak": made.largest.peak, "fits": made.fits, "cost": made.cost}
    write_figures(json_file, {**asdict(made), **given, **totals}, quiet=True)
