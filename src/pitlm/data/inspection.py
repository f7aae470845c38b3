"""What a set of preferences looks like, before anything is spent on it.

Lengths are in words: runs of characters without white space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pitlm.core.nouns import Preference
from pitlm.data.dataset import EQUAL_RESPONSES, Loaded

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Words:
    """The distribution of a length in words."""

    mean: float
    quantiles: dict[float, float]
    longest: int


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How often the longer response won, among pairs of unequal length, with a 95% Wilson interval.

    ``share``, ``low`` and ``high`` are None where no pair is of unequal length.
    """

    longer_won: int
    unequal: int
    same_length: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Counts are rows, except ``distinct_prompts``.

    ``turns`` maps the number of user turns in a prompt to its pairs. ``repeated_prompts`` counts pairs beyond the
    first on a prompt, ``duplicates`` those that repeat an earlier pair word for word, ``contradictions`` those whose
    responses an earlier pair ranks the other way.
    """

    read: int
    kept: int
    invalid: int
    dropped: dict[str, int]
    equal_responses: int
    distinct_prompts: int
    repeated_prompts: int
    duplicates: int
    contradictions: int
    with_system: int
    turns: dict[int, int]
    prompt_words: Words
    chosen_words: Words
    rejected_words: Words
    length_bias: LengthBias
    samples: tuple[Preference, ...]

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON; without the samples, which are not figures."""

        def words(length: Words) -> dict[str, Any]:
            quantiles = {f"{quantile:.0%}": value for quantile, value in length.quantiles.items()}
            return {"unit": "words", "mean": length.mean, "quantiles": quantiles, "longest": length.longest}

        bias = self.length_bias
        return {
            "read": self.read,
            "kept": self.kept,
            "invalid": self.invalid,
            "dropped": self.dropped,
            "equal_responses": self.equal_responses,
            "distinct_prompts": self.distinct_prompts,
            "repeated_prompts": self.repeated_prompts,
            "duplicates": self.duplicates,
            "contradictions": self.contradictions,
            "with_system": self.with_system,
            "turns": {str(turns): count for turns, count in self.turns.items()},
            "prompt_length": words(self.prompt_words),
            "chosen_length": words(self.chosen_words),
            "rejected_length": words(self.rejected_words),
            "length_bias": {
                "longer_won": bias.longer_won,
                "unequal": bias.unequal,
                "same_length": bias.same_length,
                "share": bias.share,
                "interval_95": None if bias.low is None else [bias.low, bias.high],
            },
        }


def inspect_preferences(loaded: Loaded, samples: int = 3) -> Inspection:
    """Describe loaded preferences; ``samples`` pairs come along, picked by hash and so the same at every call."""
    pairs = loaded.preferences
    prompts = Counter(pair.prompt.key for pair in pairs)
    seen: set[tuple[str, str, str]] = set()
    duplicates = contradictions = 0
    for pair in pairs:
        ranked = (pair.prompt.key, pair.chosen, pair.rejected)
        duplicates += ranked in seen
        contradictions += (pair.prompt.key, pair.rejected, pair.chosen) in seen
        seen.add(ranked)
    chosen = [_count(pair.chosen) for pair in pairs]
    rejected = [_count(pair.rejected) for pair in pairs]
    turns = Counter(sum(message.role == "user" for message in pair.prompt.messages) for pair in pairs)
    return Inspection(
        read=loaded.read,
        kept=len(pairs),
        invalid=loaded.invalid,
        dropped=dict(loaded.dropped),
        equal_responses=loaded.dropped.get(EQUAL_RESPONSES, 0),
        distinct_prompts=len(prompts),
        repeated_prompts=len(pairs) - len(prompts),
        duplicates=duplicates,
        contradictions=contradictions,
        with_system=sum(pair.prompt.messages[0].role == "system" for pair in pairs),
        turns=dict(sorted(turns.items())),
        prompt_words=_words(sum(_count(message.content) for message in pair.prompt.messages) for pair in pairs),
        chosen_words=_words(chosen),
        rejected_words=_words(rejected),
        length_bias=_length_bias(chosen, rejected),
        samples=tuple(sorted(pairs, key=lambda pair: pair.prompt.key)[:samples]),
    )


def _count(text: str) -> int:
    return len(text.split())


def _words(counts: Iterable[int]) -> Words:
    values = np.asarray(list(counts))
    if not values.size:
        return Words(0.0, dict.fromkeys(QUANTILES, 0.0), 0)
    quantiles = dict(zip(QUANTILES, np.quantile(values, QUANTILES).tolist(), strict=True))
    return Words(float(values.mean()), quantiles, int(values.max()))


def _length_bias(chosen: list[int], rejected: list[int]) -> LengthBias:
    longer_won = sum(won > lost for won, lost in zip(chosen, rejected, strict=True))
    unequal = sum(won != lost for won, lost in zip(chosen, rejected, strict=True))
    same = len(chosen) - unequal
    if not unequal:
        return LengthBias(0, 0, same, None, None, None)
    interval = binomtest(longer_won, unequal).proportion_ci(confidence_level=0.95, method="wilson")
    return LengthBias(longer_won, unequal, same, longer_won / unequal, float(interval.low), float(interval.high))
