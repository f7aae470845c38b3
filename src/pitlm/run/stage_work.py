"""The work of each stage of a run: which folder and settings go to the method, and what is measured afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pitlm.data.folds import unique_prompts
from pitlm.evaluate.gap_health import FreshPair, gap_health
from pitlm.evaluate.statistics import mean_interval
from pitlm.io.console import progress_bar
from pitlm.method.curriculum import train_policy, train_stage
from pitlm.method.logs import read_metrics
from pitlm.method.probe import probe_file
from pitlm.method.supervised import train_on_pairs
from pitlm.models.generators import Policy
from pitlm.models.scorers import GapModel, RewardModel
from pitlm.run.context import Context
from pitlm.run.evaluation import evaluate
from pitlm.run.prepare import prepare
from pitlm.run.results import write_report
from pitlm.run.stages import PipelineStage


def do_work(context: Context, stage: PipelineStage, folder: Path) -> dict[str, Any]:
    """Do a stage in its folder, going on from what an interrupted attempt left there. Returns the stage's result."""
    recipe, kind = context.recipe, stage.task
    if kind == "data":
        return prepare(context, folder)
    if kind == "evaluation":
        return evaluate(context, folder, recipe.policy_stage, recipe.improver_stage)
    if kind == "report":
        return write_report(context.root, recipe)
    if kind == "policy-rl":
        result = train_policy(context, stage.rl, folder)
        return {**result, "trend": quality_trend(read_metrics(probe_file(folder)))}
    if kind == "curriculum":
        assert stage.curriculum is not None
        result = train_stage(context, stage.curriculum, folder)
        return {**result, "trend": quality_trend(read_metrics(probe_file(folder)))}
    result = train_on_pairs(context, kind, stage.folds, stage.training, folder)
    return {**result, "health": _health(context, folder)} if kind == "gap" else result


def _health(context: Context, folder: Path) -> dict[str, Any]:
    """The health of R_PIT on held-out pairs and on pairs of fresh answers of the policy."""
    evaluation, bases = context.recipe.evaluation, context.bases()
    prompts = unique_prompts(context.folds["test"])[: evaluation.fresh_pairs]
    writer = context.open(Policy, context.recipe.policy_stage, bases)
    with progress_bar("fresh answers", 2 * len(prompts)) as advance:
        first, second = (
            writer.answer(
                prompts,
                temperature=evaluation.policy_temperature,
                seed=context.seed(f"fresh-{number}"),
                batch_size=evaluation.batch_size,
                advance=advance,
            )
            for number in (1, 2)
        )
    fresh = [FreshPair(x, a.text, b.text) for x, a, b in zip(prompts, first, second, strict=True)]
    return gap_health(
        context.open(GapModel, folder.name, bases),
        context.open(RewardModel, "reward", bases),
        context.folds["test"],
        fresh,
        context.judge(bases).score,
    )


def quality_trend(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the judge's quality still held at the end, while RL maximised the reward. Ours.

    Args:
        rows: two or more measurements of ``probe.jsonl``, each with one quality per held-out item, in the same order.

    Returns:
        Means of the first, the late and the last measurement, where the late one is at three quarters of the steps, or
        the last but one. And the change from late to last, paired by item: an interval below zero is the mark of
        reward hacking.
    """
    first, *middle, last = rows
    late = next((row for row in middle if row["step"] >= 0.75 * last["step"]), rows[-2])
    change = np.array(last["quality"]) - np.array(late["quality"])
    return {
        **{name: float(np.mean(row["quality"])) for name, row in (("first", first), ("late", late), ("last", last))},
        "late_step": late["step"],
        "last_step": last["step"],
        "change": asdict(mean_interval(change.tolist())),
    }
