"""A world: preference pairs whose truth is known, because a hidden utility labels them.

No trained model sees the utility. The utility labels pairs with Bradley-Terry noise, and judges answers at the end.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pitlm.core.nouns import Preference, Prompt

Write = Callable[[Sequence[Prompt], int], list[str]]
"""Answers of the start model: prompts and a seed -> one answer for each prompt."""


@dataclass(frozen=True, slots=True)
class World:
    """The parts of a world that a run uses.

    Attributes:
        name: what people call the world.
        asks: whether a prompt belongs to the world.
        utility: the truth about an answer, in points.
        criteria: the parts of an answer's utility by name: counts, or 1 for a kept and 0 for a broken criterion.
        make_preferences: number of pairs, seed, a function that writes answers, and the noise of the labels in points
            (None: the world's own) -> labelled pairs.
        pairs: how many pairs it makes unless it is told.
        words: every word of the world, for a tokenizer of words; empty if the words are not known.
        written: whether the start model writes the answers.
    """

    name: str
    asks: Callable[[Prompt], bool]
    utility: Callable[[Prompt, str], float]
    criteria: Callable[[Prompt, str], Mapping[str, float]]
    make_preferences: Callable[[int, int, Write, float | None], list[Preference]]
    pairs: int
    words: Sequence[str] = ()
    written: bool = False


def prefer(
    rng: random.Random, prompt: Prompt, first: str, second: str, difference: float, *, noise: float
) -> Preference:
    """Label a pair with Bradley-Terry noise: P(first preferred) = sigmoid(difference / noise).

    Args:
        difference: the utility of the first answer less that of the second, in points.
        noise: the temperature, in points.
    """
    first_wins = rng.random() < 1.0 / (1.0 + math.exp(min(-difference / noise, 700.0)))
    return Preference(prompt, first, second) if first_wins else Preference(prompt, second, first)
