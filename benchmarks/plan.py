"""Compares the time that the planner predicts for each stage with the time that the stage took.

By default the benchmark runs a small quickstart on one thread. It counts calibration and stages in processor seconds of
its own process, so other programs disturb it less. With --run FOLDER it reads the wall seconds of a finished run's
stages and calibrates in wall seconds, on as many threads as torch uses. That comparison is valid only if the machine is
as idle as it was during the run.

A ratio is predicted / measured. The machine is calibrated before and after the run, and each calibration gives a plan.
The prediction is the mean of the two plans.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from common import parser_of, save

from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe import Recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.models.loading import quiet
from pitlm.plan.plan import plan_run
from pitlm.plan.rates import measure_rates
from pitlm.plan.sizes import Shape, known_workload
from pitlm.run.context import Context
from pitlm.run.folder import RunFolder
from pitlm.run.stage_work import do_work
from pitlm.run.stages import build_stages

SHORT = {"curriculum.rl.probe_items": "100", "evaluation.items": "200", "evaluation.fresh_pairs": "200"}
PROMISE = 1.25


def predicted(recipe: Recipe, wall: bool) -> dict[str, float]:
    work, _ = known_workload(recipe)
    hardware = measure_rates(recipe, work, time.perf_counter if wall else time.process_time)
    plan = plan_run(recipe, Shape.of_model(recipe.model), work, hardware)
    print(hardware, flush=True)
    return {stage.name: stage.seconds for stage in plan.stages}


def executed(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Run the recipe and return the processor seconds of each stage."""
    begins: dict[str, float] = {}
    took: dict[str, float] = {}

    def listen(name: str, event: str, seconds: float) -> None:
        if event == "done":
            took[name] = time.process_time() - begins[name]
            print(f"{name:14} took {took[name]:.1f} s", flush=True)
        begins[name] = time.process_time()

    work = partial(do_work, Context(recipe, folder))
    RunFolder(folder).execute(build_stages(recipe), work, recipe=recipe.model_dump(), listener=listen)
    return took


def stored(folder: Path) -> dict[str, float]:
    """Return the wall seconds of each stage of a finished run."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/stage.json")]
    return {stage["name"]: stage["seconds"] for stage in files}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="Read this finished run; run no small quickstart.")
    parser.add_argument("--pairs", type=int, default=6_000, help="Pairs of the small run.")
    parser.add_argument("--steps", type=int, default=20, help="Steps of each RL stage of the small run.")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    quiet()
    wall = options.run is not None
    if wall:
        recipe = load_recipe(options.run / "recipe.json")
        before, measured, after = predicted(recipe, wall), stored(options.run), predicted(recipe, wall)
    else:
        torch.set_num_threads(1)
        steps = {"curriculum.rl.max_steps": str(options.steps), "curriculum.steps": "null"}
        sizes = {"data.pairs": str(options.pairs), **steps}
        recipe = load_recipe(find_recipe("quickstart"), {**SHORT, **sizes})
        before = predicted(recipe, wall)
        with tempfile.TemporaryDirectory() as folder:
            measured = executed(recipe, Path(folder) / "run")
        after = predicted(recipe, wall)
    rows = {}
    for name in before:
        mean = statistics.mean((before[name], after[name]))
        rows[name] = {"predicted": mean, "measured": measured[name], "ratio": mean / measured[name]}
    total = {part: sum(row[part] for row in rows.values()) for part in ("predicted", "measured")}
    total["ratio"] = total["predicted"] / total["measured"]
    drift = sum(after.values()) / sum(before.values())
    for name, row in {**rows, "in all": total}.items():
        print(f"{name:14} predicted {row['predicted']:7.1f} s  measured {row['measured']:7.1f} s  x{row['ratio']:.2f}")
    print(f"second calibration / first: x{drift:.2f}; total within 25%: {held(total['ratio'])}")
    figures = {"clock": "wall" if wall else "processor", "threads": torch.get_num_threads(), "drift": drift}
    save({**figures, "stages": rows, "total": total, "holds": held(total["ratio"])}, options.json)
    return 0 if held(total["ratio"]) else 1


def held(ratio: float) -> bool:
    return 1 / PROMISE <= ratio <= PROMISE


if __name__ == "__main__":
    sys.exit(main())
