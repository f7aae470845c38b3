"""A world: preference pairs whose truth is known, because a hidden utility labels them.

Nothing that is trained sees the utility. It labels pairs with Bradley-Terry noise, and judges at the end.
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
    """What a run takes from a world.

    Attributes:
        name: what people call the world.
        asks: whether a prompt is one of the world's.
        utility: the truth about an answer, in points.
        criteria: what the utility is made of, by name: counts, or 1 for kept and 0 for broken.
        make_preferences: number of pairs, seed, and what writes answers -> labelled pairs.
        words: every word, where a tokenizer of words can be made for the world.
        written: whether the start model writes the answers.
    """

    name: str
    asks: Callable[[Prompt], bool]
    utility: Callable[[Prompt, str], float]
    criteria: Callable[[Prompt, str], Mapping[str, float]]
    make_preferences: Callable[[int, int, Write], list[Preference]]
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
    first_wins = rng.random() < 1.0 / (1.0 + math.exp(-difference / noise))
    return Preference(prompt, first, second) if first_wins else Preference(prompt, second, first)
