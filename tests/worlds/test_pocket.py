"""The pocket world: its truth by hand, its noise by formula, and that imitation is not enough."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from scipy.stats import binom

from pitlm.core.nouns import Prompt
from pitlm.worlds import pocket as world
from pitlm.worlds.pocket import (
    RUDE,
    WEIGHTS,
    Marks,
    ShopRequest,
    best_utility,
    draw_request,
    draw_response,
    make_preferences,
    mark,
    utility,
    vocabulary,
)
from pitlm.worlds.world import prefer

X = Prompt.of("lamp : color red price nine size small . price color ?")
PERFECT = "price nine . color red . happy to help ."


@pytest.fixture
def known_weights(monkeypatch):
    """Fixed weights for hand arithmetic, so that tuning the world does not change these tests."""
    monkeypatch.setattr(
        world, "WEIGHTS", Marks(right=0.5, wrong=-1, rude=-1, padding=-0.5, repeated=-0.5, courtesy=0.5)
    )
    monkeypatch.setattr(world, "NOISE", 0.4)


@pytest.mark.usefixtures("known_weights")
@pytest.mark.parametrize(
    ("response", "marks", "points"),
    [
        (PERFECT, Marks(right=2, wrong=0, rude=0, padding=0, repeated=0, courtesy=1), 1.5),
        ("price nine .", Marks(1, 0, 0, 0, 0, 0), 0.5),
        ("price twelve . color red .", Marks(1, 1, 0, 0, 0, 0), -0.5),
        ("price nine . price nine .", Marks(1, 0, 0, 0, 1, 0), 0.0),
        ("price twelve . price nine .", Marks(0, 1, 0, 0, 1, 0), -1.5),  # the first answer counts
        ("size small .", Marks(0, 0, 0, 1, 0, 0), -0.5),  # right, but not asked
        ("silly question . price nine .", Marks(1, 0, 1, 0, 0, 0), -0.5),
        ("as you can see . well anyway .", Marks(0, 0, 0, 2, 0, 0), -1.0),
        ("happy to help . thanks for asking . happy to help .", Marks(0, 0, 0, 2, 0, 1), -0.5),  # courtesy counts once
        ("", Marks(0, 0, 0, 0, 0, 0), 0.0),
        ("price nine", Marks(1, 0, 0, 0, 0, 0), 0.5),
        ("price nine color red .", Marks(0, 0, 0, 1, 0, 0), -0.5),
    ],
)
def test_marks_and_utility_by_hand(response, marks, points):
    assert mark(X, response) == marks
    assert utility(X, response) == pytest.approx(points)


def test_nothing_beats_the_perfect_response():
    assert best_utility(X) == utility(X, PERFECT)
    rng = random.Random(0)
    for _ in range(500):
        request = draw_request(rng)
        assert utility(request.as_prompt(), draw_response(rng, request)) <= best_utility(request.as_prompt()) + 1e-9


def test_a_request_survives_its_prompt():
    rng = random.Random(1)
    for _ in range(50):
        request = draw_request(rng)
        assert ShopRequest.parse(request.as_prompt()) == request
        assert set(request.asked) <= set(request.facts)


def test_one_rude_sentence_more_is_always_worse():
    rng = random.Random(2)
    for _ in range(300):
        request = draw_request(rng)
        prompt, response = request.as_prompt(), draw_response(rng, request)
        sentences = response.split(" . ")
        at = rng.randrange(len(sentences) + 1)
        worse = " . ".join([*sentences[:at], rng.choice(RUDE), *sentences[at:]])
        assert utility(prompt, worse) == pytest.approx(utility(prompt, response) + WEIGHTS.rude)
        assert utility(prompt, worse) < utility(prompt, response)


@pytest.mark.usefixtures("known_weights")
@pytest.mark.parametrize(("first", "second"), [("price nine .", "size small ."), ("price nine .", ""), (PERFECT, "")])
def test_noise_follows_bradley_terry(first, second):
    rng, count = random.Random(3), 4000
    difference = utility(X, first) - utility(X, second)
    wins = sum(prefer(rng, X, first, second, difference, noise=world.NOISE).chosen == first for _ in range(count))
    # Points by hand: 0.5 and -0.5; 0.5 and 0; 1.5 and 0.
    points = {"size small .": -0.5, "": 0.0, "price nine .": 0.5, PERFECT: 1.5}
    chance = 1 / (1 + math.exp(-(points[first] - points[second]) / 0.4))
    low, high = binom.interval(0.9999, count, chance)
    assert low <= wins <= high


def test_both_responses_of_a_pair_are_kept():
    rng = random.Random(4)
    for _ in range(20):
        pair = prefer(rng, X, "price nine .", "", 1.0, noise=world.NOISE)
        assert {pair.chosen, pair.rejected} == {"price nine .", ""}


def test_pairs_are_the_same_for_a_seed_and_differ_between_seeds():
    assert make_preferences(40, seed=0) == make_preferences(40, seed=0)
    assert make_preferences(40, seed=0)[:10] == make_preferences(10, seed=0)
    first, second = set(make_preferences(200, seed=0)), set(make_preferences(200, seed=1))
    assert len(first & second) < 5


def test_responses_of_a_pair_differ_and_use_known_words():
    pairs = make_preferences(500, seed=5)
    known = set(vocabulary())
    assert len(known) < 80
    assert all(pair.chosen != pair.rejected for pair in pairs)
    assert {
        word for pair in pairs for text in (pair.prompt.text, pair.chosen, pair.rejected) for word in text.split()
    } <= known


def test_flaws_are_common_in_winners_and_more_common_in_losers():
    """So imitating winners keeps their flaws; only the direction of preference shows which answer is better."""
    pairs = make_preferences(3000, seed=6)
    share: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        for side, response in (("w", pair.chosen), ("l", pair.rejected)):
            marks = mark(pair.prompt, response)
            share[side, "rude"] += marks.rude > 0
            share[side, "padding"] += marks.padding > 0
    for flaw in ("rude", "padding"):
        winners, losers = share["w", flaw] / len(pairs), share["l", flaw] / len(pairs)
        assert winners > 0.35, f"too few winners with {flaw}: imitation alone would remove it"
        assert losers > winners + 0.05
    mean = sum(utility(pair.prompt, pair.chosen) for pair in pairs) / len(pairs)
    best = sum(best_utility(pair.prompt) for pair in pairs) / len(pairs)
    assert mean < best - 0.5, "winners leave no room above them"


def test_more_noise_makes_more_labels_wrong():
    wrong = []
    for noise in (0.05, None, 4.0):
        pairs = make_preferences(2000, 9, noise)
        wrong.append(sum(utility(p.prompt, p.chosen) < utility(p.prompt, p.rejected) for p in pairs) / len(pairs))
    assert wrong[0] < 0.01
    assert wrong == sorted(wrong)
    assert wrong[2] > 0.3
    assert make_preferences(20, 9, world.NOISE) == make_preferences(20, 9)


def test_the_better_response_usually_wins():
    pairs = make_preferences(3000, seed=7)
    gaps = [utility(pair.prompt, pair.chosen) - utility(pair.prompt, pair.rejected) for pair in pairs]
    differ = [gap for gap in gaps if abs(gap) > 1e-9]
    assert 0.75 < sum(gap > 0 for gap in differ) / len(differ) < 0.97
