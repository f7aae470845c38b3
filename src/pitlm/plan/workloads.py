"""How many pairs a recipe's data has, and of what lengths, where that is known beforehand. Ours."""

from __future__ import annotations

from dataclasses import replace

from pitlm.core.recipe import Recipe
from pitlm.plan.costs import Workload
from pitlm.plan.hardware import CARDS, assumed
from pitlm.plan.plan import Plan, plan_run
from pitlm.plan.shapes import Shape

POCKET = Workload(24_000, 11.5, 10.1, 10.5, marks=2.5, prompts=0.86, judge=False)

HUB = {
    "Anthropic/hh-rlhf": Workload(160_800, 169, 85, 86),
    "trl-lib/tldr-preference": Workload(92_858, 350, 35, 35),
    "trl-lib/ultrafeedback_binarized": Workload(62_135, 200, 320, 280),
}
"""Rows of the split train. Lengths: HH-RLHF's are the means of 1,000 pairs (benchmarks/hh_lengths.csv); the others are
assumed."""

CARD_ORDER = ("rtx4090", "h100", "h200")


def known_workload(recipe: Recipe) -> tuple[Workload, str]:
    """The workload of the recipe's own source, and where the figures come from."""
    source = recipe.data.source or ""
    if source == "pocket":
        return replace(POCKET, pairs=recipe.data.pairs or POCKET.pairs), "the pocket world's own lengths"
    if source in HUB:
        return HUB[source], f"lengths known for {source}"
    data = recipe.data
    half = data.max_response_tokens / 2
    work = Workload(data.pairs or 10_000, data.max_prompt_tokens / 2, half, half)
    return work, "assumed: half of the lengths that the recipe allows; --data measures them"


def recipe_plan(recipe: Recipe) -> Plan:
    """The plan on the smallest of a few cards that holds the run; on the largest where none does."""
    work, _ = known_workload(recipe)
    shape = Shape.of_model(recipe.model)
    plans = [plan_run(recipe, shape, work, assumed(name, recipe.model.dtype)) for name in CARD_ORDER]
    return next((plan for plan in plans if plan.fits), plans[-1])


def recipe_note(recipe: Recipe) -> str:
    """The comment line of a recipe: what it is planned to take; a test holds the recipes to it."""
    plan = recipe_plan(recipe)
    name, memory = plan.hardware.name, CARDS[plan.hardware.name].memory / 1e9
    return (
        f"# Planned (pit doctor {recipe.name} --hardware {name}): {plan.seconds / 3600:.1f} hours and at most "
        f"{plan.peak / 1e9:.0f} of {memory:.0f} GB (in {plan.largest.name}), at assumed rates."
    )
