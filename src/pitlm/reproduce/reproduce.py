"""Runs experiments over seeds, and brings their figures together: a mean and an interval over seeds for each cell."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError, placed
from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe import Recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.evaluate.statistics import Interval, mean_interval
from pitlm.models.loading import quiet
from pitlm.models.machine import native_bfloat16
from pitlm.reproduce.experiment import Experiment, experiment_names, find_experiment
from pitlm.reproduce.iterations import ROUNDS, iterate
from pitlm.reproduce.measures import MEASURES, OF_ITERATIONS, worst
from pitlm.run.context import Context
from pitlm.run.folder import RunFolder, Stage, Status, fingerprints, stage_record
from pitlm.run.run_recipe import check_recipe
from pitlm.run.stage_work import do_work
from pitlm.run.stages import PipelineStage, build_stages

Tell = Callable[[str], None]
"""Shows one line about what is done now."""

Cells = dict[str, dict[int, list[float]]]
"""One row of a table: by figure and seed, the values by item."""


def reproduce(
    names: Sequence[str], recipe: str, seeds: Sequence[int], out: Path, tell: Tell, *, update: bool = False
) -> dict[str, Any]:
    """Bring the runs of each experiment up to date, and return the figures of all of them by the experiment's name.

    A run that several experiments need is made once. Runs of one seed share each stage in which they do not differ. An
    interrupted command goes on where it stopped.

    Args:
        names: packaged experiments or files; none means all packaged experiments.
        recipe: packaged recipe or file, which the variants change.
        out: folder that gets one folder for each seed, with one run for each variant.
        update: redo stages whose settings have changed.

    Raises:
        InputError: no such experiment or recipe, two experiments of one name, settings that the recipe does not have, a
            recipe without a known truth, runs of another recipe in ``out`` without ``update``, or rows or figures that
            the runs do not have.
    """
    quiet()
    if len({Path(name).stem for name in names}) < len(names):  # the stem names a picture
        raise InputError(f"experiments: found {', '.join(names)}, expected names or files with names that differ")
    experiments = {name: find_experiment(name) for name in names or experiment_names()}
    variants = {name: [*_recipes(name, experiment, recipe, out)] for name, experiment in experiments.items()}
    found = {}
    for name, experiment in experiments.items():
        runs = {}
        for seed, (variant, folder, chosen) in product(seeds, variants[name]):
            tell(f"{name}, seed {seed}" + (f": {variant}" if variant else ""))
            runs[variant, seed] = root = out / f"seed-{seed}" / folder
            more = experiment.measure in OF_ITERATIONS
            make_run(chosen.model_copy(update={"seed": seed}), root, tell, iterations=more, update=update)
        with placed(name):
            found[name] = {"recipe": recipe, **figures(experiment, runs)}
    return found


def _recipes(name: str, experiment: Experiment, recipe: str, out: Path) -> Iterator[tuple[str, str, Recipe]]:
    """Each variant with the name of its folder and its recipe. Equal changes have one folder."""
    for variant, changes in experiment.variants.items():
        text = json.dumps(changes, sort_keys=True, default=str)
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", variant)[:40].strip("-.")
        folder = f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if changes else "as-it-is"
        with placed(f"{name}: variant '{variant}'"):
            chosen = load_recipe(find_recipe(recipe), {k: json.dumps(v, default=str) for k, v in changes.items()})
            if chosen.data.world is None or chosen.evaluation.judges is not None:
                raise InputError(f"{recipe}: found a judge without a known truth, expected data of a world")
            chosen = chosen.with_dtype(native_bfloat16=native_bfloat16())
            check_recipe(chosen, out)
        yield variant, folder, chosen


def make_run(recipe: Recipe, root: Path, tell: Tell, *, iterations: bool, update: bool) -> None:
    """Bring one run up to date. A stage that a run beside it has finished with equal settings is taken from there."""
    stages: list[Stage] = [*build_stages(recipe)[:-1]]  # the tables take the place of the report
    if iterations:
        read = recipe.model_dump(include={"loop": True, "evaluation": {"items", "policy_temperature"}})
        stages.append(Stage("iterations", {"rounds": ROUNDS, **read}, stages[-1].needs))
    context, folder = Context(recipe, root), RunFolder(root)
    prints = fingerprints(stages)

    def work(stage: Stage, place: Path) -> dict[str, Any]:
        return do_work(context, stage, place) if isinstance(stage, PipelineStage) else iterate(context, place)

    def listen(name: str, event: str, _: float) -> None:
        if event in ("start", "resume"):
            tell(f"  {name}")

    with folder.locked():
        for stage in stages:
            finished = (path for path in root.parent.glob("*") if _has(path, stage.name, prints[stage.name]))
            if not (root / stage.name).exists() and (source := next(finished, None)) is not None:
                temporary = root / f".{stage.name}.tmp"
                shutil.copytree(source / stage.name, temporary, copy_function=_link)
                temporary.rename(root / stage.name)
    folder.execute(stages, work, recipe=recipe.model_dump(), update=update, listener=listen)


def _link(source: str, target: str) -> None:
    """Hard-link a file of a finished stage, whose files never change; copy the file where there are no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _has(root: Path, stage: str, fingerprint: str) -> bool:
    record = stage_record(root, stage)
    return record is not None and (record["status"], record["fingerprint"]) == (Status.DONE, fingerprint)


def figures(experiment: Experiment, runs: dict[tuple[str, int], Path]) -> dict[str, Any]:
    """The table of an experiment and the difference between the rows of each claim, from the folders of its runs.

    Each cell of ``table`` has ``seeds``, an interval over items for each seed, and ``mean``, the interval over seeds.

    Raises:
        InputError: a row, a figure, or a row of a claim that the runs do not have.
    """
    rows: dict[str, Cells] = {}
    seen: dict[str, None] = {}
    for (variant, seed), root in runs.items():
        for row, measured in MEASURES[experiment.measure](root).items():
            seen[row] = None
            if (label := experiment.label(variant, row)) is None:
                continue
            for figure in experiment.figures or measured:
                if figure not in measured:
                    raise InputError(f"'figures': found '{figure}', expected some of {', '.join(measured)}")
                rows.setdefault(label, {}).setdefault(figure, {})[seed] = list(measured[figure])
    named = [row for _, row in experiment.rows.values()] if isinstance(experiment.rows, dict) else experiment.rows or []
    for key, names, known in (("rows", named, seen), ("claims", [*chain(*experiment.claims)], rows)):
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"'{key}': found '{unknown[0]}', expected some of {', '.join(known)}")
    order = dict.fromkeys([row for row in experiment.rows or () if row in rows] + [*rows])
    table = {row: {name: _cell(cell) for name, cell in rows[row].items()} for row in order}
    claims = [{"first": a, "second": b, **_difference(rows[a], rows[b])} for a, b in experiment.claims]
    about = experiment.model_dump(include={"title", "paper", "finding"})
    about["examples"] = worst(next(iter(runs.values())), experiment.examples) if experiment.examples else []
    return {**about, "seeds": sorted({seed for _, seed in runs}), "table": table, "claims": claims}


def _cell(values: dict[int, list[float]]) -> dict[str, Any]:
    seeds = {seed: mean_interval(own) for seed, own in values.items()}
    return {"seeds": {seed: _bounds(found) for seed, found in seeds.items()}, "mean": _bounds(_over(seeds))}


def _over(seeds: dict[int, Interval]) -> Interval:
    """The mean over seeds with its t interval. With one seed it is the interval over items."""
    found = [one for one in seeds.values() if not math.isnan(one.estimate)]
    return found[0] if len(found) == 1 else mean_interval([one.estimate for one in found])


def _bounds(found: Interval) -> list[float | None]:
    """Estimate and bounds in four digits; None where one item or one seed gives no interval."""
    return [None if math.isnan(value) else round(value, 4) for value in (found.estimate, found.low, found.high)]


def _difference(first: Cells, second: Cells) -> dict[str, Any]:
    """The first figure of one row less that of another, over seeds; item by item within a seed, if the items agree."""
    figure = next(iter(first))
    over = _over({seed: _less(own, second[figure][seed]) for seed, own in first[figure].items()})
    verdict = ("holds" if over.estimate > 0 else "reversed") if over.excludes_zero else "undecided"
    return {"figure": figure, "difference": _bounds(over), "verdict": verdict}


def _less(first: Sequence[float], second: Sequence[float]) -> Interval:
    if len(first) == len(second):
        return mean_interval([a - b for a, b in zip(first, second, strict=True)])
    return mean_interval([mean_interval(first).estimate - mean_interval(second).estimate])
