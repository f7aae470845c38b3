"""The bag of words under every reward model."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Preference, Prompt
from pitlm.evaluate.floor import floor_scores, floor_share

FILLER = ("the", "shop", "has", "sofas", "and", "desks", "in", "stock", "today", ".")


def worded(count: int, signal: float, seed: int = 0) -> list[Preference]:
    """Pairs in which the winner is the polite answer in this share of cases, and the rude one in the others."""
    draw = random.Random(seed)
    pairs = []
    for number in range(count):
        polite, rude = (" ".join([*draw.choices(FILLER, k=8), word]) for word in ("gladly", "whatever"))
        chosen, rejected = (polite, rude) if draw.random() < signal else (rude, polite)
        pairs.append(Preference(Prompt.of(f"question {number}"), chosen, rejected))
    return pairs


def test_it_learns_words() -> None:
    found = floor_share(worded(400, 1.0))
    assert (found["estimate"], found["low"] > 0.9) == (1.0, True)


def test_it_is_at_chance_where_words_say_nothing() -> None:
    right = floor_scores(worded(400, 0.5), worded(2000, 0.5, seed=1)) > 0
    assert abs(right.mean() - 0.5) < 3 * 0.5 / 2000**0.5  # three standard errors


def test_swapped_responses_swap_the_sign() -> None:
    train, pairs = worded(60, 0.9), worded(20, 0.5, seed=2)
    swapped = [Preference(pair.prompt, pair.rejected, pair.chosen) for pair in pairs]
    np.testing.assert_allclose(floor_scores(train, swapped), -floor_scores(train, pairs))


def test_length_alone_is_learnt() -> None:
    """The longer response wins. It repeats words of the other, so that its words say little."""
    train = [Preference(Prompt.of(str(n)), f"w{n} v{n} " * (4 + n % 3), f"w{n} v{n}") for n in range(60)]
    fresh = [Preference(Prompt.of("x"), "unseen text " * 9, "unseen text"), Preference(Prompt.of("x"), "a", "b " * 40)]
    scores = floor_scores(train, fresh)
    assert scores[0] > 0 > scores[1]


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="folds: found"):
        floor_share(worded(3, 1.0))
