"""The number of pairs of a recipe's data and their lengths, where both are known beforehand. Ours."""

from __future__ import annotations

from dataclasses import replace

from pitlm.core.recipe import DataSection, Recipe
from pitlm.data.dataset import load_preferences
from pitlm.plan.costs import Workload

POCKET = Workload(24_000, 11.5, 10.1, 10.5, marks=2.5, prompts=0.86)

HUB = {
    "Anthropic/hh-rlhf": Workload(160_800, 169, 85, 86),
    "trl-lib/tldr-preference": Workload(92_858, 350, 35, 35),
    "trl-lib/ultrafeedback_binarized": Workload(62_135, 200, 320, 280),
}
"""Rows of the split train. Lengths: HH-RLHF's are the means of 1,000 pairs (benchmarks/hh_lengths.csv); the others are
assumed."""


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


def measured_workload(source: str, limits: DataSection) -> tuple[Workload, str]:
    """Count pairs, and take four characters for a token, as in English: a tokenizer may be far away.

    Lengths are cut to what the recipe allows: a few long prompts would move the mean far from what is read.

    Raises:
        InputError: a source that cannot be read.
    """
    kept = load_preferences(source, skip_invalid=True, progress=True).preferences
    most = (limits.max_prompt_tokens, limits.max_response_tokens, limits.max_response_tokens)
    letters = [(sum(len(m.content) for m in p.prompt.messages), len(p.chosen), len(p.rejected)) for p in kept]
    x, w, l = (
        sum(min(count / 4, limit) for count in part) / len(kept)
        for part, limit in zip(zip(*letters, strict=True), most, strict=True)
    )
    distinct = len({pair.prompt.key for pair in kept}) / len(kept)
    return Workload(len(kept), x, w, l, prompts=distinct), f"{source}, four characters a token"
