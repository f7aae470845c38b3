"""The health of a gap model, with scripted models whose figures are known."""

from __future__ import annotations

import math

import pytest
import torch

from pitlm.core.nouns import Preference, Prompt
from pitlm.core.verdicts import Comparison
from pitlm.evaluate.gap_health import gap_health
from pitlm.evaluate.statistics import share
from pitlm.judge.scores import ScoreJudge

X = Prompt.of("x")
QUALITY = {"bad": 0.0, "fair indeed": 1.0, "good": 2.0, "superb": 3.0, "worst": -1.0}
PAIRS = [Preference(X, "good", "bad"), Preference(X, "superb", "fair indeed"), Preference(X, "bad", "superb")]


TRAIN = [Preference(X, "good", "bad"), Preference(X, "superb", "worst")]


class Gap:
    """``sign`` times the difference of qualities; raw scores add an offset."""

    def __init__(self, sign: float = 1.0, offset: float = 0.0) -> None:
        self.sign, self.offset = sign, offset

    def raw(self, items):
        return torch.tensor([self.sign * (QUALITY[i.response] - QUALITY[i.reference]) + self.offset for i in items])

    def gaps(self, items):
        return self.raw(items) - self.offset


class Reward:
    def scores(self, prompts, responses):
        return torch.tensor([QUALITY[y] for y in responses])


TRUTH = ScoreJudge("truth", lambda prompts, responses: [QUALITY[y] for y in responses])


FRESH = [
    Comparison(X, "good", "bad"),
    Comparison(X, "bad", "good"),
    Comparison(X, "good", "good"),
    Comparison(X, "worst", "bad"),
]


def test_shares_by_hand():
    """The third pair is labelled against the truth, so an exact model gets two of three."""
    health = gap_health(Gap(offset=5.0), Reward(), TRAIN, PAIRS, FRESH, TRUTH)
    assert {name: figure["estimate"] for name, figure in health["order"].items()} == pytest.approx(
        dict.fromkeys(("wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw"), 2 / 3)
    )
    assert health["held_out_pairs"]["estimate"] == pytest.approx(2 / 3)
    assert health["held_out_pairs_reward"]["estimate"] == pytest.approx(2 / 3)
    # Words: of the three pairs the bag knows good over bad, superb over an unknown text, and so not bad over superb.
    assert health["held_out_pairs_floor"]["estimate"] == pytest.approx(2 / 3)
    assert health["above_floor"]["R_P"]["estimate"] == health["above_floor"]["R_PIT"]["estimate"] == 0.0
    # In words: the first and third pair have equal lengths and are left out; in the second the winner is shorter.
    assert (health["held_out_pairs_longer"]["estimate"], health["held_out_pairs_longer"]["n"]) == (0.0, 1)
    assert health["antisymmetry"] == pytest.approx(-1.0)
    assert health["equal_spread"] == pytest.approx(0.0, abs=1e-6)
    # Gaps +-2, +-2, +-3 around the offset
    assert health["gap_spread"] == pytest.approx(math.sqrt((4 + 4 + 9) / 3), rel=1e-5)


def test_fresh_pairs_of_equal_quality_are_left_out():
    right = gap_health(Gap(), Reward(), TRAIN, PAIRS, FRESH, TRUTH)["fresh_pairs"]
    wrong = gap_health(Gap(sign=-1.0), Reward(), TRAIN, PAIRS, FRESH, TRUTH)["fresh_pairs"]
    assert (right["estimate"], right["n"]) == (1.0, 3)
    assert (wrong["estimate"], wrong["n"]) == (0.0, 3)


def test_an_offset_of_raw_scores_does_not_change_fresh_accuracy():
    assert (
        gap_health(Gap(offset=100.0), Reward(), TRAIN, PAIRS, FRESH, TRUTH)["fresh_pairs"]
        == gap_health(Gap(), Reward(), TRAIN, PAIRS, FRESH, TRUTH)["fresh_pairs"]
    )


def test_a_gap_that_does_not_vary_has_no_correlation():
    health = gap_health(Gap(sign=0.0), Reward(), TRAIN, PAIRS, FRESH, TRUTH)
    assert math.isnan(health["antisymmetry"])
    assert math.isnan(health["length_correlation"])
    assert health["order"]["wl>lw"]["estimate"] == 0.0  # equal scores are not in order


def test_a_share_has_its_exact_interval():
    figure = share([True] * 9 + [False])
    # Clopper-Pearson, from the beta quantiles (tables)
    assert (figure["estimate"], figure["n"]) == (0.9, 10)
    assert figure["low"] == pytest.approx(0.5550, abs=1e-4)
    assert figure["high"] == pytest.approx(0.9975, abs=1e-4)


def test_a_share_of_nothing_is_not_a_number():
    figure = share([])
    assert math.isnan(figure["estimate"])
    assert figure["n"] == 0
