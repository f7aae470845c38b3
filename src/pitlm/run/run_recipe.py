"""One run from beginning to end, and what it prints."""

import shutil
import time
from datetime import date
from functools import partial
from pathlib import Path

from rich.text import Text

from pitlm.core.errors import InputError
from pitlm.core.recipe import Recipe
from pitlm.data.readers import check_outside
from pitlm.io.console import make_console
from pitlm.loop.baselines.baseline import chosen_baselines
from pitlm.method.common import check_trackers, share_of_batch
from pitlm.method.launch import Launch, read_launch
from pitlm.method.rl import check_rollouts
from pitlm.models.loading import quiet
from pitlm.models.machine import native_bfloat16
from pitlm.models.quantization import check_quantization
from pitlm.report.terminal import print_report
from pitlm.run.context import Context
from pitlm.run.folder import RunFolder, stage_record, stage_result, stored_recipe
from pitlm.run.judges import check_judges
from pitlm.run.results import data_line
from pitlm.run.stage_work import do_work
from pitlm.run.stages import build_stages


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    update: bool = False,
    until: str | None = None,
    begin: float = 0.0,
    accelerate: Path | None = None,
) -> None:
    """Run every stage that is not done, then print the results.

    Args:
        until: the last stage to run; by default the last of all.
        begin: when the command started, on the clock ``time.perf_counter``.
        accelerate: file of a configuration of accelerate's launcher, which starts the processes of each training.

    Raises:
        InputError: bad data, an unknown stage or tracker, a missing package, a folder that holds another run, or a
            launch that this machine, the recipe's batches or its quantization do not fit.
        RankFailed: one of the processes of a training died.
    """
    console = make_console()
    quiet()
    recipe = recipe.with_dtype(native_bfloat16=native_bfloat16())
    begun = (out / "recipe.json").is_file()
    recipe = recipe.with_today(stored_recipe(out).template.today if begun else date.today().isoformat())
    check_recipe(recipe, out)
    if recipe.model.dtype == "bfloat16" and recipe.peft is None:
        console.print("Warning: whole weights in bfloat16 lose most steps below 3e-4; use float32, or adapters (peft).")
    launch = None if accelerate is None else read_launch(accelerate)
    if launch is not None:
        check_launch(recipe, launch)
    stages = build_stages(recipe)
    names = [stage.name for stage in stages]
    if until is not None:
        if until not in names:
            raise InputError(f"--until: found '{until}', expected one of {', '.join(names)}")
        stages = stages[: names.index(until) + 1]
    folder, context, record = RunFolder(out), Context(recipe, out, launch), stage_record(out, "report")
    if record and record["status"] == "done" and not (out / "report.html").exists():  # outside the folder of its stage
        shutil.rmtree(out / "report")
    done: set[str] = set()

    def listen(name: str, event: str, seconds: float) -> None:
        if event != "done":
            words = {"skip": " (done before)", "resume": " (goes on)"}.get(event, "")
            console.print(Text(f"[{names.index(name) + 1}/{len(names)}] {name}{words}"))
            return
        done.add(name)
        if name == "data" and not recipe.data.world:
            console.print(Text(f"  {data_line(stage_result(out, name))}"))

    folder.execute(stages, partial(do_work, context), recipe=recipe.model_dump(), update=update, listener=listen)
    if "gap" in (stage.name for stage in stages):  # the first stage with figures
        print_report(context.report)
    took = time.perf_counter() - (begin or time.perf_counter())
    end = f"Report: {out / 'report.html'}" if until is None else "To go on, give the command without --until."
    console.print(Text(f"\n{len(done)} of {len(names)} stages run, {took:.0f} s in all. {end}"))


def check_recipe(recipe: Recipe, out: Path) -> None:
    """Check before the run that everything the recipe names is there.

    Raises:
        InputError: a tracker, package, baseline or judge is missing, or the data lies in the run's own folder.
    """
    check_trackers(recipe.report_to)
    for section in filter(None, (recipe.policy_rl, recipe.curriculum.rl)):
        check_rollouts(section, recipe.quantize)
    check_quantization(recipe.quantize)
    chosen_baselines(recipe)
    if recipe.data.source:
        check_outside(recipe.data.source, out)
    check_judges(recipe)


def check_launch(recipe: Recipe, launch: Launch) -> None:
    """Check before the run that the processes can share the batches of every training, and the weights.

    Raises:
        InputError: the processes cannot share the batches or the weights.
    """
    if recipe.quantize and launch.sharded:
        raise InputError(
            f"peft.quantize: found {recipe.quantize} and {launch.config}, which shards, expected --accelerate ddp"
        )
    for stage in build_stages(recipe, contents=False):
        try:
            _ = stage.section and share_of_batch(stage.section, launch.processes)
        except InputError as error:
            raise InputError(f"{stage.key}.{error}") from error
