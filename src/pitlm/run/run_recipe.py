"""One run from beginning to end, and what it prints."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pitlm.core.errors import InputError
from pitlm.core.recipe import Recipe
from pitlm.data.readers import check_outside
from pitlm.io.console import make_console
from pitlm.loop.baselines.baseline import PIT, chosen_baselines
from pitlm.method.common import check_trackers, share_of_batch
from pitlm.method.launch import Launch, read_launch
from pitlm.method.rl import check_rollouts
from pitlm.models.loading import check_quantization, quiet
from pitlm.run.context import Context
from pitlm.run.finished import POCKET
from pitlm.run.folder import RunFolder, stage_record, stage_result
from pitlm.run.judges import check_judges
from pitlm.run.results import data_line, headline, health_lines, trends
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
    check_recipe(recipe, out)
    launch = None if accelerate is None else read_launch(accelerate)
    if launch is not None:
        check_launch(recipe, launch)
    stages = build_stages(recipe)
    names = [stage.name for stage in stages]
    if until is not None:
        if until not in names:
            raise InputError(f"--until: found '{until}', expected one of {', '.join(names)}")
        stages = stages[: names.index(until) + 1]
    folder = RunFolder(out)
    record = stage_record(out, "report")
    if record and record["status"] == "done" and not (out / "report.html").exists():  # outside its stage's folder
        shutil.rmtree(out / "report")
    done: set[str] = set()

    def listen(name: str, event: str, seconds: float) -> None:
        words = {"skip": "done before", "start": "", "resume": "goes on", "done": f"{seconds:.0f} s"}
        if event == "done":
            done.add(name)
            if name == "data" and recipe.data.source != POCKET:
                console.print(Text(f"  {data_line(stage_result(out, name))}"))
            return
        number = f"{names.index(name) + 1}/{len(names)}"
        console.print(Text(f"[{number}] {name}" + (f" ({words[event]})" if words[event] else "")))

    work = partial(do_work, Context(recipe, out, launch))
    folder.execute(stages, work, recipe=recipe.model_dump(), update=update, listener=listen)
    if until is None:
        summary(console, out, names)
        took = time.perf_counter() - (begin or time.perf_counter())
        console.print(
            Text(f"\n{len(done)} of {len(names)} stages run, {took:.0f} s in all. Report: {out / 'report.html'}")
        )


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
        InputError: they cannot share them.
    """
    if recipe.quantize and launch.sharded:
        raise InputError(
            f"peft.quantize: found {recipe.quantize} and {launch.config}, which shards, expected --accelerate ddp"
        )
    sections = {name: getattr(recipe, name) for name in ("policy_sft", "reward", "policy_rl", "improver_sft", "gap")}
    for name, section in {**sections, "curriculum.rl": recipe.curriculum.rl}.items():
        try:
            _ = section and share_of_batch(section, launch.processes)
        except InputError as error:
            raise InputError(f"{name}.{error}") from error


def summary(console: Console, root: Path, stages: Sequence[str]) -> None:
    """The table of systems, three answers before and after, and the health of R_PIT."""
    evaluation = stage_result(root, "evaluation")
    health = stage_result(root, "gap")["health"]
    console.print()
    console.print(_systems(evaluation))
    console.print(_health(health))
    for sentence in trends(root, stages):
        console.print(Text(sentence))
    console.print(Text("\nThree answers, before and after:"))
    for item in _three(root):
        console.print(Text(f"  asked   {item['prompt'][-1]['content']}"))
        console.print(Text(f"  before  {item['answers']['original']}"))
        console.print(Text(f"  after   {item['answers'][PIT]}\n"))
    for sentence in headline(evaluation, health):
        console.print(Text(sentence))


def _systems(evaluation: dict[str, Any]) -> Table:
    table = Table(
        title=f"Against the original answer, {evaluation['items']} held-out prompts, judge: {evaluation['judge']}"
    )
    for column in ("system", "win", "tie", "loss", "Delta [95%]", "quality", "copies", "tokens", "gain / 100"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for line in evaluation["systems"]:
        tally, delta = line["tally"], line["delta"]
        judged = tally["win"] + tally["tie"] + tally["loss"]
        shares = [f"{100 * tally[name] / judged:.1f}%" for name in ("win", "tie", "loss")] if judged else ["-"] * 3
        bounds = (
            f"{100 * delta['estimate']:+.1f} [{100 * delta['low']:+.1f}, {100 * delta['high']:+.1f}]" if judged else "-"
        )
        copies = f"{100 * line['copy_rate']:.1f}%" if judged else "-"
        quality = f"{line['quality']['estimate']:.2f}"
        per = line["gain_per_100_tokens"]
        cost = (f"{line['generated_tokens']:.1f}", f"{per['estimate']:+.2f}" if per else "-")
        table.add_row(line["name"], *shares, bounds, quality, copies, *cost)
    return table


def _health(health: dict[str, Any]) -> Table:
    table = Table(title="Health of R_PIT")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95%", justify="right")
    for line in health_lines(health):
        percent = line.unit == "share"
        value = f"{100 * line.value:.1f}%" if percent else f"{line.value:.2f}"
        bounds = f"{100 * line.interval.low:.1f}-{100 * line.interval.high:.1f}%" if line.interval and percent else ""
        table.add_row(Text(line.name), value, bounds)
    return table


def _three(root: Path) -> Sequence[dict[str, Any]]:
    with (root / "evaluation" / "items.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(3), strict=False)]
