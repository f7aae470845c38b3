from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_rows import rows_of

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.statistics import (
    Interval,
    Tally,
    delta_interval,
    mean_interval,
    paired_difference,
    rows_for,
    standard_error,
    tally,
    win_rate_interval,
)

SIGN = {"w": 1, "t": 0, "l": -1, "i": 0}


ITEMS = st.lists(st.text("wtliu", min_size=1, max_size=4), min_size=1, max_size=12)


def delta(counted: Tally) -> float:
    return counted.share(Verdict.WIN) - counted.share(Verdict.LOSS)


def test_tally_hand_arithmetic() -> None:
    counted = tally(rows_of("w", "w", "w", "t", "l", "i", "i", "i", "u", "u"))
    assert counted == Tally(win=3, tie=1, loss=1, inconsistent=3, unparsable=2)
    assert counted.judged == 8
    assert counted.share(Verdict.WIN) == 3 / 8
    assert counted.share(Verdict.LOSS) == 1 / 8
    assert delta(counted) == 2 / 8


@pytest.mark.parametrize("rows", [[], rows_of("u", "uu")])
def test_nothing_judged_is_nan_not_zero(rows: list[VerdictRow]) -> None:
    counted = tally(rows)
    assert all(math.isnan(counted.share(verdict)) for verdict in Verdict)
    for interval in (delta_interval(rows), win_rate_interval(rows), paired_difference(rows, rows)):
        assert all(math.isnan(value) for value in (interval.estimate, interval.low, interval.high))
        assert not interval.excludes_zero


@given(ITEMS)
def test_unparsable_is_never_a_tie(items: list[str]) -> None:
    dropped = [letters.replace("u", "") for letters in items]
    with_unparsable, without = tally(rows_of(*items)), tally(rows_of(*dropped))
    assert with_unparsable.tie == without.tie
    assert with_unparsable.judged == without.judged
    assert delta(with_unparsable) == delta(without) or math.isnan(delta(without))
    a, b = delta_interval(rows_of(*items), resamples=50), delta_interval(rows_of(*dropped), resamples=50)
    assert a == b or math.isnan(b.estimate)


def exact_distribution(items: list[str]) -> np.ndarray:
    """Delta of each of the n^n equally likely resamples of the items."""
    deltas = []
    for drawn in itertools.product(items, repeat=len(items)):
        letters = "".join(drawn)
        deltas.append(sum(SIGN[letter] for letter in letters) / len(letters))
    return np.sort(np.array(deltas))


@pytest.mark.parametrize("confidence", [0.5, 0.7, 0.9, 0.95])
def test_interval_equals_the_enumeration_of_all_27_resamples(confidence: float) -> None:
    items = ["wwl", "l", "tw"]
    exact = exact_distribution(items)
    assert len(exact) == 27
    interval = delta_interval(rows_of(*items), resamples=20_000, confidence=confidence, seed=3)
    assert interval.estimate == pytest.approx(1 / 6)  # 3 wins, 2 losses, 1 tie
    assert interval.confidence == confidence
    for bound, level in ((interval.low, (1 - confidence) / 2), (interval.high, (1 + confidence) / 2)):
        # A quantile of a discrete distribution is a value with this much mass at or below it.
        near = exact[np.argmin(np.abs(exact - bound))]
        assert bound == pytest.approx(near, abs=1e-9)
        assert np.mean(exact < near - 1e-9) <= level + 1e-9
        assert np.mean(exact <= near + 1e-9) >= level - 1e-9


def test_rows_of_one_item_are_resampled_together() -> None:
    # Ten copies of each verdict are no new evidence: the interval must not shrink.
    single = delta_interval(rows_of(*"wlwwltlww"))
    copies = delta_interval(rows_of(*(letter * 10 for letter in "wlwwltlww")))
    assert copies == single


@settings(max_examples=40, deadline=None)
@given(ITEMS)
def test_swapping_every_row_negates_and_mirrors(items: list[str]) -> None:
    rows = rows_of(*items)
    assert [row.swap().swap() for row in rows] == rows
    seen, swapped = delta_interval(rows, resamples=200), delta_interval([row.swap() for row in rows], resamples=200)
    expected = (-seen.estimate, -seen.high, -seen.low)
    assert (swapped.estimate, swapped.low, swapped.high) == pytest.approx(expected, nan_ok=True)
    assert tally(rows).share("win") == pytest.approx(tally([row.swap() for row in rows]).share("loss"), nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(ITEMS, st.randoms(use_true_random=False))
def test_estimates_equal_the_tally_and_row_order_is_irrelevant(items: list[str], random) -> None:
    rows = rows_of(*items)
    shuffled = random.sample(rows, len(rows))
    interval = delta_interval(rows, resamples=100)
    assert interval.estimate == pytest.approx(delta(tally(rows)), nan_ok=True)
    assert win_rate_interval(rows, resamples=100).estimate == pytest.approx(tally(rows).share("win"), nan_ok=True)
    again = delta_interval(shuffled, resamples=100)
    assert (again.low, again.high) == pytest.approx((interval.low, interval.high), nan_ok=True)


@pytest.mark.parametrize("items", [["w"], ["w"] * 20, ["l"] * 5, ["t", "i", "t"]])
def test_equal_outcomes_give_no_width_and_no_warning(items: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = delta_interval(rows_of(*items))
        difference = paired_difference(rows_of(*items), rows_of(*items))
    assert interval.low == interval.estimate == interval.high == SIGN[items[0]]
    assert (difference.estimate, difference.low, difference.high) == (0, 0, 0)


def test_same_seed_same_interval() -> None:
    rows = rows_of(*"wwlltwilwwl")
    assert delta_interval(rows, seed=5) == delta_interval(rows, seed=5)


def test_paired_difference_cancels_what_the_items_share() -> None:
    # A beats B on one item of eight whatever the item's difficulty: A-B is +1 or 0 per item.
    shared = list("wwwllll")
    a, b = rows_of(*shared, "w"), rows_of(*shared, "t")
    interval = paired_difference(a, b)
    assert interval.estimate == pytest.approx(1 / 8)
    assert interval.low >= 0  # two separate intervals, of half-width about 0.7, would overlap
    mirrored = paired_difference(b, a)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))


def test_paired_difference_against_the_enumeration() -> None:
    a, b = ["ww", "l", "t"], ["l", "lw", "t"]
    exact = []
    for drawn in itertools.product(range(3), repeat=3):
        letters_a, letters_b = "".join(a[i] for i in drawn), "".join(b[i] for i in drawn)
        exact.append(
            sum(SIGN[x] for x in letters_a) / len(letters_a) - sum(SIGN[x] for x in letters_b) / len(letters_b)
        )
    # The extremes have mass 1/27 > 2.5%, so they are the 95% bounds.
    interval = paired_difference(rows_of(*a), rows_of(*b), resamples=20_000)
    assert interval.estimate == pytest.approx((2 - 1) / 4 - (-1 + 0) / 4)
    assert (interval.low, interval.high) == pytest.approx((min(exact), max(exact)))


def test_paired_difference_leaves_out_items_that_one_side_lacks() -> None:
    a, b = rows_of("w", "u", "l", "w"), rows_of("l", "w", "l", "u")
    assert paired_difference(a, b).estimate == pytest.approx(1.0)  # items 0 and 2: 0 - (-1)


def test_paired_difference_leaves_out_items_that_one_side_does_not_know() -> None:
    whole, known = rows_of("w", "l", "wt"), rows_of("w", "l")
    assert paired_difference(whole, rows_of("t", "w")) == paired_difference(known, rows_of("t", "w"))
    assert paired_difference(rows_of("t", "w"), whole) == paired_difference(rows_of("t", "w"), known)
    assert math.isnan(paired_difference(whole, []).estimate)


def test_mean_interval() -> None:
    assert mean_interval([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    assert mean_interval([7.5]) == Interval(7.5, 7.5, 7.5)
    assert math.isnan(mean_interval([]).estimate)
    with pytest.raises(ValueError, match="NaN or infinite"):
        mean_interval([1.0, math.nan])
    values = np.random.default_rng(0).normal(3, 2, size=400)
    interval = mean_interval(values)
    # The normal approximation is an independent source: half-width 1.96 s / sqrt(n).
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_coverage_of_a_known_delta() -> None:
    generator = np.random.default_rng(11)
    probabilities = {"w": 0.45, "t": 0.25, "l": 0.30}
    truth, covered, runs = 0.15, 0, 200
    for run in range(runs):
        items = generator.choice(list(probabilities), size=100, p=list(probabilities.values()))
        interval = delta_interval(rows_of(*items), resamples=300, seed=run)
        covered += interval.low <= truth <= interval.high
    # Four standard errors of a binomial with p = 0.95 and n = 200 are 0.06.
    assert 0.89 <= covered / runs <= 1.0


def test_rows_for_sees_every_comparison_from_the_first_system() -> None:
    stored = [
        VerdictRow("a", "pit", "original", Verdict.WIN, (2.0, 1.0)),
        VerdictRow("b", "original", "pit", Verdict.WIN, (5.0, 3.0)),
        VerdictRow("c", "pit", "refine", Verdict.LOSS),
        VerdictRow("d", "original", "pit", Verdict.INCONSISTENT),
    ]
    assert rows_for(stored, "pit", "original") == [
        VerdictRow("a", "pit", "original", Verdict.WIN, (2.0, 1.0)),
        VerdictRow("b", "pit", "original", Verdict.LOSS, (3.0, 5.0)),
        VerdictRow("d", "pit", "original", Verdict.INCONSISTENT),
    ]
    assert rows_for(stored, "refine", "original") == []


def test_standard_error_of_one_row_an_item_is_the_textbooks() -> None:
    rows = rows_of("w", "w", "l", "t", "i", "w", "u")
    values = np.array([1, 1, -1, 0, 0, 1])
    assert standard_error(rows) == pytest.approx(values.std(ddof=1) / math.sqrt(6))
    assert standard_error([row.swap() for row in rows]) == pytest.approx(standard_error(rows))


def test_standard_error_of_copies_is_that_of_the_items() -> None:
    items = ["w", "w", "l", "t", "w", "l", "w"]
    assert standard_error(rows_of(*[letter * 3 for letter in items])) == pytest.approx(standard_error(rows_of(*items)))
    assert math.isnan(standard_error(rows_of("wwww", "u")))
    # With unequal numbers of rows an item, against the bootstrap's own spread.
    generator = np.random.default_rng(3)
    rows = rows_of(*["".join(generator.choice(list("wtl"), size=size)) for size in generator.integers(1, 5, 300)])
    interval = delta_interval(rows, resamples=4000)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * standard_error(rows), rel=0.06)
