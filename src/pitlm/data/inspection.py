"""Describes a set of preferences in figures, before a run spends time on it.

Lengths are in words: runs of characters without white space.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pitlm.core.nouns import Preference
from pitlm.data.dataset import EQUAL_RESPONSES, Loaded

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def inspect_preferences(loaded: Loaded) -> dict[str, Any]:
    """Describe loaded preferences in figures, ready for JSON. Counts are rows, except ``distinct_prompts``.

    Returns:
        The counts of :class:`Loaded`, and by name: ``repeated_prompts``, pairs beyond the first on a prompt;
        ``duplicates``, pairs that repeat an earlier pair word for word; ``contradictions``, pairs whose responses an
        earlier pair ranks the other way; ``contradicted_by_scores``, pairs whose own scores prefer the rejected answer;
        ``turns``, pairs by the number of user turns in their prompt; the
        distribution of ``prompt_length``, ``chosen_length`` and ``rejected_length``; and ``length_bias``.
    """
    pairs = loaded.preferences
    prompts = Counter(pair.prompt.key for pair in pairs)
    seen: set[tuple[str, str, str]] = set()
    duplicates = contradictions = 0
    for pair in pairs:
        ranked = (pair.prompt.key, pair.chosen, pair.rejected)
        duplicates += ranked in seen
        contradictions += (pair.prompt.key, pair.rejected, pair.chosen) in seen
        seen.add(ranked)
    turns = Counter(sum(message.role == "user" for message in pair.prompt.messages) for pair in pairs)
    chosen, rejected = [_words(pair.chosen) for pair in pairs], [_words(pair.rejected) for pair in pairs]
    return {
        **loaded.counts(),
        "equal_responses": loaded.dropped.get(EQUAL_RESPONSES, 0),
        "distinct_prompts": len(prompts),
        "repeated_prompts": len(pairs) - len(prompts),
        "duplicates": duplicates,
        "contradictions": contradictions,
        "contradicted_by_scores": loaded.contradicted,
        "with_system": sum(pair.prompt.messages[0].role == "system" for pair in pairs),
        "turns": dict(sorted(turns.items())),
        "prompt_length": _length([sum(_words(turn.content) for turn in pair.prompt.messages) for pair in pairs]),
        "chosen_length": _length(chosen),
        "rejected_length": _length(rejected),
        "length_bias": _length_bias(np.asarray(chosen), np.asarray(rejected)),
    }


def pick_samples(pairs: Iterable[Preference], count: int) -> list[Preference]:
    """Pick pairs by the hash of their prompt, so that every call picks the same pairs."""
    return sorted(pairs, key=lambda pair: pair.prompt.key)[:count]


def _words(text: str) -> int:
    return len(text.split())


def _length(words: Sequence[int]) -> dict[str, Any]:
    """The distribution of a length; its quantiles are named by their percentage."""
    quantiles = {f"{q:.0%}": float(np.quantile(words, q)) for q in QUANTILES}
    return {"unit": "words", "mean": float(np.mean(words)), "quantiles": quantiles, "longest": max(words)}


def _length_bias(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, Any]:
    """How often the longer response won, among pairs of unequal length, with a 95% Wilson interval.

    ``share`` and ``interval_95`` are None if no pair is of unequal length.
    """
    longer_won, unequal = int((chosen > rejected).sum()), int((chosen != rejected).sum())
    share = interval = None
    if unequal:
        found = binomtest(longer_won, unequal).proportion_ci(confidence_level=0.95, method="wilson")
        share, interval = longer_won / unequal, (float(found.low), float(found.high))
    counts = {"longer_won": longer_won, "unequal": unequal, "same_length": len(chosen) - unequal}
    return {**counts, "share": share, "interval_95": interval}
