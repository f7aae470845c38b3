"""What a set of preferences looks like, before anything is spent on it.

Lengths are in words: runs of characters without white space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pitlm.core.nouns import Preference
from pitlm.data.dataset import EQUAL_RESPONSES, Loaded

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Length:
    """The distribution of a length in words; ``quantiles`` are named by their percentage."""

    unit: str
    mean: float
    quantiles: dict[str, float]
    longest: int


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How often the longer response won, among pairs of unequal length, with a 95% Wilson interval.

    ``share`` and ``interval_95`` are None where no pair is of unequal length.
    """

    longer_won: int
    unequal: int
    same_length: int
    share: float | None = None
    interval_95: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Counts are rows, except ``distinct_prompts``.

    Attributes:
        repeated_prompts: pairs beyond the first on a prompt.
        duplicates: pairs that repeat an earlier pair word for word.
        contradictions: pairs whose responses an earlier pair ranks the other way.
        turns: pairs by the number of user turns in their prompt.
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
    prompt_length: Length
    chosen_length: Length
    rejected_length: Length
    length_bias: LengthBias
    samples: tuple[Preference, ...]

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON; without the samples, which are not figures."""
        return {name: value for name, value in asdict(self).items() if name != "samples"}


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
    chosen = [_words(pair.chosen) for pair in pairs]
    rejected = [_words(pair.rejected) for pair in pairs]
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
        prompt_length=_length(sum(_words(message.content) for message in pair.prompt.messages) for pair in pairs),
        chosen_length=_length(chosen),
        rejected_length=_length(rejected),
        length_bias=_length_bias(np.asarray(chosen), np.asarray(rejected)),
        samples=tuple(sorted(pairs, key=lambda pair: pair.prompt.key)[:samples]),
    )


def _words(text: str) -> int:
    return len(text.split())


def _length(counts: Iterable[int]) -> Length:
    values = np.asarray(list(counts))
    quantiles = {f"{q:.0%}": float(np.quantile(values, q)) for q in QUANTILES}
    return Length("words", float(values.mean()), quantiles, int(values.max()))


def _length_bias(chosen: np.ndarray, rejected: np.ndarray) -> LengthBias:
    longer_won, unequal = int((chosen > rejected).sum()), int((chosen != rejected).sum())
    same = len(chosen) - unequal
    if not unequal:
        return LengthBias(0, 0, same)
    interval = binomtest(longer_won, unequal).proportion_ci(confidence_level=0.95, method="wilson")
    return LengthBias(longer_won, unequal, same, longer_won / unequal, (float(interval.low), float(interval.high)))
