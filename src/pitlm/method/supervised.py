"""Stages 1 and 2 of the paper: what policy, improver, R_P and R_PIT learn from pairs, and where they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pitlm.core.recipe import TrainSection
from pitlm.method.reward import gap_rows, reward_rows, train_gap, train_reward
from pitlm.method.setting import Setting
from pitlm.method.sft import improver_rows, policy_rows, train_sft
from pitlm.models.loading import Kind

LESSONS: Mapping[Kind, tuple[Callable[..., Sequence[Any]], Callable[..., dict[str, float]]]] = {
    "policy": (policy_rows, partial(train_sft, title="policy SFT")),
    "improver": (improver_rows, partial(train_sft, title="improver SFT")),
    "reward": (reward_rows, train_reward),
    "gap": (gap_rows, train_gap),
}
"""How pairs become rows, and how a model is trained on the rows."""


def train_on_pairs(
    run: Setting, kind: Kind, folds: Sequence[str], section: TrainSection, folder: Path
) -> dict[str, Any]:
    """Train one model on the pairs of some folds; returns how many there are, and the held-out metrics."""
    rows_of, train = LESSONS[kind]
    pairs = [pair for fold in folds for pair in run.folds[fold]]
    rows = rows_of(pairs, run.tokenizer, run.template)
    held_out = rows_of(run.folds["validation"][: section.eval_rows], run.tokenizer, run.template)
    bench = run.bench(folder, _start(run, kind), kind)
    return {"pairs": len(rows), **run.train(folder, lambda: train(rows, held_out, section, bench))}


def _start(run: Setting, kind: Kind) -> str | Path:
    """R_P starts from the policy and R_PIT from the improver, unless the recipe names a base for both."""
    model = run.recipe.model
    if kind in ("reward", "gap"):
        return model.reward_base or run.model("policy-sft" if kind == "reward" else "improver-sft")
    return run.model("policy-sft") if kind == "improver" and model.improver_start == "policy" else run.start
