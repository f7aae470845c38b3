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

from pitlm.cli.main import EXTRAS
from pitlm.cli.options import PATH, check_output, finite, force_option, json_option, overrides_option, write_figures
from pitlm.core.errors import InputError
from pitlm.io.visible import echo
from pitlm.plan.hardware import CARDS, assumed, look, machine_lines


@click.command()
@click.argument("recipe", required=False)
@click.option("--data", help="Pairs to count and measure. Default: the known figures of the recipe's own data.")
@click.option("--pairs", type=click.IntRange(min=1), help="Plan for this many pairs.")
@overrides_option
@click.option("--plan", is_flag=True, help="Show every stage, not only the total.")
@click.option("--hardware", type=click.Choice(list(CARDS)), help="Plan for this card. Default: measure this machine.")
@click.option("--devices", type=click.IntRange(1, 10**6), default=1, show_default=True, help="Number of cards.")
@click.option("--price", type=click.FloatRange(min=0), callback=finite, help="Price of a device for an hour.")
@click.option("--beside", type=PATH, metavar="RUN", help="Show beside the plan how long the stages of this run took.")
@json_option
@force_option
def doctor(
    recipe: str | None,
    data: str | None,
    pairs: int | None,
    overrides: tuple[str, ...],
    plan: bool,
    hardware: str | None,
    devices: int,
    price: float | None,
    beside: Path | None,
    json_file: Path | None,
    force: bool,
) -> None:
    """Say what this machine can run, and estimate the memory and time that RECIPE needs.

    The command downloads nothing and asks no hub.
    """
    check_output(json_file, force, "the figures")
    if recipe is None:
        if any((data, pairs, overrides, plan, hardware, price, beside)):
            raise InputError("found options of a plan and no recipe, expected one: pit recipes lists them")
        found = look(EXTRAS, Path())
        echo("\n".join(machine_lines(found)))
        return write_figures(json_file, found, quiet=True)
    if devices > 1 and hardware is None:
        raise InputError("--devices: found no --hardware, expected one: this machine is measured as it is")
    from pitlm.core.recipe_file import named_recipe
    from pitlm.plan.plan import plan_lines, plan_run
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
        machine = replace(assumed(hardware, chosen.model.dtype), devices=devices)
    else:
        from pitlm.models.machine import native_bfloat16
        from pitlm.plan.rates import measure_rates

        chosen = chosen.with_dtype(native_bfloat16=native_bfloat16())
        echo("Measuring this machine for some seconds ...", err=True)
        machine = measure_rates(chosen, work)
    made = plan_run(chosen, shape, work, replace(machine, price=price))
    records = {stage.name: stage_record(beside, stage.name) for stage in made.stages} if beside else {}
    took = {name: record["seconds"] for name, record in records.items() if record and record["status"] == "done"}
    if beside and not took:
        raise InputError(f"{beside}: found no finished stage, expected the folder of a run of {chosen.name}")
    echo("\n".join(plan_lines(made, shape, work, where, every=plan, took=took)))
    given = {"took": took, "workload": asdict(work), "shape": asdict(shape)}
    totals = {"seconds": made.seconds, "peak": made.largest.peak, "fits": made.fits, "cost": made.cost}
    write_figures(json_file, {**asdict(made), **given, **totals}, quiet=True)
