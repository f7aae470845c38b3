"""Stages 1 and 2 of the paper: what policy, improver, R_P and R_PIT learn from pairs, and where they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer
from trl import RewardTrainer

from pitlm.core.recipe import TrainSection
from pitlm.method.common import Workbench, fit
from pitlm.method.reward import GapTrainer, gap_rows, reward_rows, scorer_trainer
from pitlm.method.setting import Setting
from pitlm.method.sft import improver_rows, policy_rows, sft_trainer
from pitlm.models.loading import Kind

LESSONS: Mapping[Kind, tuple[str, Callable[..., Sequence[Any]], Callable[..., Trainer]]] = {
    "policy": ("policy SFT", policy_rows, sft_trainer),
    "improver": ("improver SFT", improver_rows, sft_trainer),
    "reward": ("reward model", reward_rows, partial(scorer_trainer, RewardTrainer)),
    "gap": ("gap model", gap_rows, partial(scorer_trainer, GapTrainer)),
}
"""The title of each lesson, how pairs become its rows, and what trains a model on the rows."""


def train_on_pairs(
    run: Setting, kind: Kind, folds: Sequence[str], section: TrainSection, folder: Path
) -> dict[str, Any]:
    """Train one model on the pairs of some folds; returns the number of pairs, and the held-out metrics."""
    rows_of = LESSONS[kind][1]
    pairs = [pair for fold in folds for pair in run.folds[fold]]
    rows = rows_of(pairs, run.tokenizer, run.template)
    held_out = rows_of(run.folds["validation"][: section.eval_rows], run.tokenizer, run.template)
    bench = run.bench(folder, _start(run, kind), kind)
    return {"pairs": len(rows), **run.train(folder, lambda: train_on_rows(kind, rows, held_out, section, bench))}


def train_on_rows(
    kind: Kind, rows: Sequence[Any], held_out: Sequence[Any], section: TrainSection, bench: Workbench
) -> dict[str, float]:
    """Train one model on the rows of its lesson; returns the held-out metrics."""
    title, _, trainer = LESSONS[kind]
    return fit(trainer(bench.load(), rows, held_out, section, bench), bench, title)


def _start(run: Setting, kind: Kind) -> str | Path:
    """R_P starts from the policy and R_PIT from the improver, unless the recipe names a base for both."""
    model = run.recipe.model
    if kind in ("reward", "gap"):
        return model.reward_base or run.model("policy-sft" if kind == "reward" else "improver-sft")
    return run.model("policy-sft") if kind == "improver" and model.improver_start == "policy" else run.start
