"""From the results of a run's stages to its report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pitlm.core.nouns import Trace
from pitlm.core.verdicts import Verdict
from pitlm.evaluate.statistics import Interval
from pitlm.loop.baselines.baseline import PIT
from pitlm.method.logs import read_metrics
from pitlm.method.probe import probe_file
from pitlm.report.html import write
from pitlm.report.shape import BeforeAfter, Curve, Report, RoundQuality
from pitlm.run.context import Context
from pitlm.run.folder import stage_result
from pitlm.run.results import (
    data_line,
    difference_lines,
    headline,
    health_lines,
    notes,
    system_lines,
    trends,
)

EXAMPLES = 400


def report(context: Context, folder: Path, stages: Sequence[str]) -> dict[str, Any]:
    """Write ``report.html`` at the root of the run."""
    del folder  # the report is what people look for: it lies at the top
    path = context.root / "report.html"
    evaluation = stage_result(context.root, "evaluation")
    health, data = stage_result(context.root, "gap")["health"], stage_result(context.root, "data")
    write(
        Report(
            title=f"pitlm: {context.recipe.name}",
            settings=_settings(context, evaluation),
            headline=headline(evaluation, health),
            systems=system_lines(evaluation),
            differences=difference_lines(evaluation),
            curves=[_curve(context.root, name, evaluation["judge"]) for name in stages if name.startswith("rl-")],
            quality_by_round=RoundQuality(
                evaluation["judge"],
                {name: [Interval(**i) for i in chain] for name, chain in evaluation["quality_by_round"].items()},
            ),
            gaps=evaluation["gaps"],
            health=health_lines(health),
            examples=_examples(context.root, evaluation["gaps"][PIT]),
            notes=[*trends(context.root, stages), f"{data_line(data)}.", *notes(evaluation, pocket=context.pocket)],
            quality_name=evaluation["judge"],
        ),
        path,
    )
    return {"path": path.name}


def _settings(context: Context, evaluation: dict[str, Any]) -> dict[str, str]:
    recipe = context.recipe
    data = stage_result(context.root, "data")
    base = recipe.model.base or "from scratch"
    return {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "data": f"{recipe.data.source}: {sum(fold['pairs'] for fold in data['folds'].values())} pairs",
        "start model": base,
        "training": "LoRA" if recipe.peft else "full",
        "curriculum": ", ".join(recipe.curriculum.stages),
        "judge": evaluation["judge"],
        "held-out prompts": str(evaluation["items"]),
        "improver temperature": f"{recipe.loop.temperature:g}",
        "policy temperature": f"{recipe.evaluation.policy_temperature:g}",
    }


def _curve(root: Path, stage: str, judge: str) -> Curve:
    rows = {row["step"]: row for row in read_metrics(root / stage / "metrics.jsonl") if "reward" in row}
    # The judge's mean over the samples of a step moves with the prompts that they answer; held-out ones stay the same.
    held_out = {row["step"]: float(np.mean(row["quality"])) for row in read_metrics(probe_file(root / stage))}
    steps = sorted({*rows, *held_out})
    return Curve(
        stage,
        steps,
        [rows.get(step, {}).get("reward") for step in steps],
        [rows.get(step, {}).get("kl_sequence") for step in steps],
        [held_out.get(step) for step in steps],
        f"{judge} on held-out prompts",
    )


def _examples(root: Path, gaps: Sequence[float]) -> list[BeforeAfter]:
    folder = root / "evaluation"
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    traces = [json.loads(line) for line in (folder / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    examples = []
    for item, trace, gap in list(zip(items, traces, gaps, strict=True))[:EXAMPLES]:
        scores = (item["scores"][PIT], item["scores"]["original"])
        examples.append(
            BeforeAfter(Trace.from_dict(trace), gap, _verdict(scores), None if None in scores else scores, PIT)
        )
    return examples


def _verdict(scores: tuple[float | None, float | None]) -> Verdict | None:
    mine, theirs = scores
    if mine is None or theirs is None:
        return None
    if math.isclose(mine, theirs, abs_tol=1e-6):
        return Verdict.TIE
    return Verdict.WIN if mine > theirs else Verdict.LOSS
