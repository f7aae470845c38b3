"""What an experiment can measure, read from the folder of a finished run: figures by row, with one value for each item.

A figure of the whole run, such as seconds, has a single value. Nothing here loads a model.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.rankings import elo
from pitlm.evaluate.statistics import Interval
from pitlm.io.atomic import read_json_lines
from pitlm.loop.baselines.baseline import ORIGINAL, PIT, SFT
from pitlm.report.shape import HEALTH, health_figures
from pitlm.reproduce.experiment import Measure
from pitlm.reproduce.iterations import CHOSEN, FILE, REJECTED, ROUNDS
from pitlm.run.folder import stage_record, stage_result, stored_recipe
from pitlm.run.stages import build_stages

Rows = Mapping[str, Mapping[str, Sequence[float]]]
"""By row and figure, one value for each item, or a single value for the whole run."""

ELO_SHUFFLES = 20
"""Elo's intervals come from the seeds here, so a few orders of the games are enough."""


def sign(values: Any) -> list[float]:
    """What each difference adds to Delta, in points."""
    return [float(100 * s) for s in np.sign(np.asarray(values))]


def systems(run: Path) -> Rows:
    """The final answers of each system, by the first judge of the run."""
    rows: dict[str, dict[str, list[float]]] = {ORIGINAL: defaultdict(list)}
    for row in _judged(run):
        mine, original = row["scores"]
        own = rows.setdefault(row["first"], defaultdict(list))
        own["Delta"] += sign([mine - original])
        own["utility"].append(mine)
        if row["first"] == PIT:
            rows[ORIGINAL]["Delta"].append(0.0)
            rows[ORIGINAL]["utility"].append(original)
    for item in read_json_lines(run / "evaluation" / "items.jsonl"):
        for name, text in item["answers"].items():
            rows[name]["words"].append(len(text.split()))
            rows[name]["tokens written"].append(item["tokens"][name][1])
            rows[name]["tokens read"].append(item["tokens"][name][2])
    return rows


def rounds(run: Path) -> Rows:
    """Utility and Elo of each version without the stop rule, and of the answer that the stop rule keeps."""
    versions: dict[str, list[float]] = {}
    for name, rows in _by_start(run, PIT, SFT):
        by_round = zip(*(row["utility"] for row in rows), strict=True)
        versions |= {(f"{name}, round {n}" if n else ORIGINAL): list(own) for n, own in enumerate(by_round)}
        versions[f"{name}, {ROUNDS} rounds, stop rule"] = [row["kept"]["utility"] for row in rows]
    games = [
        VerdictRow(str(item), a, b, Verdict.WIN if u > v else Verdict.LOSS if u < v else Verdict.TIE)
        for a, b in combinations(versions, 2)
        for item, (u, v) in enumerate(zip(versions[a], versions[b], strict=True))
    ]
    ratings = elo(games, shuffles=ELO_SHUFFLES)
    return {name: {"utility": own, "Elo": [ratings[name].estimate]} for name, own in versions.items()}


def trust(run: Path) -> Rows:
    """By round without the stop rule: how often R_PIT knows whether a version is better than the version before."""
    found = {}
    for name, rows in _by_start(run, PIT, SFT):
        for n in range(ROUNDS):
            steps = [(row["gap"][n], row["utility"][n + 1] - row["utility"][n]) for row in rows]
            told = [100.0 * ((gap > 0) == (change > 0)) for gap, change in steps if change]
            better = [100.0 * (change > 0) for _, change in steps]
            gaps = [gap for gap, _ in steps]
            found[f"{name}, round {n + 1}"] = {"right, % of changes": told, "better, % of all": better, "gap": gaps}
    return found


def starts(run: Path) -> Rows:
    """PIT with the stop rule, from answers of the policy and from the two answers of the data.

    Delta against the start is judged by the truth, and by the two models that were trained on pairs.
    """
    return {
        f"from {'the policy' if name == PIT else name}": {
            "Delta": sign([row["kept"]["utility"] - row["utility"][0] for row in rows]),
            "Delta by R_P": sign([row["kept"]["reward"] - row["reward"][0] for row in rows]),
            "Delta by R_PIT": sign([row["kept"]["gap"] for row in rows]),
            "utility before": [row["utility"][0] for row in rows],
            "utility after": [row["kept"]["utility"] for row in rows],
        }
        for name, rows in _by_start(run)
        if name != SFT
    }


def gaps(run: Path) -> Rows:
    """The gap to the policy's answer, of the answers of the data and of each system."""
    found = {name: [row["gap to the policy"] for row in rows] for name, rows in _by_start(run, CHOSEN, REJECTED)}
    found |= stage_result(run, "evaluation")["gaps"]
    return {name: {"gap": own, "above 0, %": [100.0 * (gap > 0) for gap in own]} for name, own in found.items()}


def health(run: Path) -> Rows:
    """The shares of pairs that R_PIT and its rivals get right before RL."""
    found = health_figures(stage_result(run, "gap")["health"])
    return {HEALTH[k][0]: {"right, %": [100 * v.estimate]} for k, v in found.items() if isinstance(v, Interval)}


def seconds(run: Path) -> Rows:
    """Seconds of each stage."""
    records = [stage_record(run, stage.name) for stage in build_stages(stored_recipe(run), contents=False)]
    return {record["name"]: {"seconds": [record["seconds"]]} for record in records if record}


def failures(run: Path) -> Rows:
    """How many answers PIT made better and worse, and the parts of the utility that it changed."""
    rows: dict[str, list[float]] = defaultdict(list)
    [(_, improved)] = _by_start(run, PIT)
    for item in read_json_lines(run / "evaluation" / "items.jsonl"):
        before, after = (item["criteria"][name] for name in (ORIGINAL, PIT))
        for criterion in before:
            rows[f"more {criterion}"].append(100.0 * (after[criterion] > before[criterion]))
            rows[f"less {criterion}"].append(100.0 * (after[criterion] < before[criterion]))
    changes = [row["kept"]["utility"] - row["utility"][0] for row in improved]
    rows["worse"], rows["better"] = [100.0 * (c < 0) for c in changes], [100.0 * (c > 0) for c in changes]
    return {name: {"of answers, %": own} for name, own in rows.items()}


def worst(run: Path, count: int) -> list[dict[str, Any]]:
    """The answers that PIT made worse, by the first judge, the worst first: prompt, before, after and the change."""
    items = {item["item"]: item for item in read_json_lines(run / "evaluation" / "items.jsonl")}
    judged = {row["item"]: row["scores"] for row in _judged(run) if row["first"] == PIT}
    change = {item: mine - original for item, (mine, original) in judged.items() if mine < original}
    found = []
    for item in sorted(change, key=lambda item: change[item])[:count]:
        prompt, answers = Prompt.of(items[item]["prompt"]).text, items[item]["answers"]
        found.append({"prompt": prompt, "before": answers[ORIGINAL], "after": answers[PIT], "change": change[item]})
    return found


def _judged(run: Path) -> list[dict[str, Any]]:
    """The verdicts of the first judge of a run."""
    judge = next(iter(stage_result(run, "evaluation")["judges"]))
    return [row for row in read_json_lines(run / "evaluation" / "verdicts.jsonl") if row["judge"] == judge]


def _by_start(run: Path, *names: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of the iterations by start; ``names`` chooses some starts."""
    by_start: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_json_lines(run / "iterations" / FILE):
        by_start[row["start"]].append(row)
    yield from ((name, rows) for name, rows in by_start.items() if not names or name in names)


MEASURES: Mapping[Measure, Callable[[Path], Rows]] = {name: globals()[name] for name in get_args(Measure)}
OF_ITERATIONS: set[Measure] = {"rounds", "trust", "starts", "gaps", "failures"}
"""Measures that read the stage of :mod:`pitlm.reproduce.iterations`."""
