from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
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
    a, b = delta_interval(rows_of(*items)), delta_interval(rows_of(*dropped))
    assert a == b or math.isnan(b.estimate)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(50, 0, 0), (40, 3, 7), (0, 9, 0), (1, 0, 0), (300, 200, 100)])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_one_verdict_an_item_gives_bonett_and_prices_interval(
    wins: int, ties: int, losses: int, confidence: float
) -> None:
    """Bonett and Price (2012), Adjusted Wald intervals for a difference of paired proportions; Student's t for z."""
    n = wins + ties + losses
    b, c = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    error = math.sqrt((b + c - (b - c) ** 2) / (n + 1))
    reach = stats.t.ppf((1 + confidence) / 2, max(1, n - 1)) * error
    interval = delta_interval(rows_of(*"w" * wins, *"t" * ties, *"l" * losses), confidence=confidence)
    assert interval.estimate == pytest.approx((wins - losses) / n)
    wide = min(interval.estimate, b - c - reach), max(interval.estimate, b - c + reach)
    assert (interval.low, interval.high) == pytest.approx((max(-1, wide[0]), min(1, wide[1])))
    assert interval.low <= interval.estimate <= interval.high
    won = win_rate_interval(rows_of(*"w" * wins, *"t" * ties, *"l" * losses), confidence=confidence)
    reach = stats.t.ppf((1 + confidence) / 2, max(1, n - 1)) * math.sqrt(b * (1 - b) / (n + 1))
    wide = min(wins / n, b - reach), max(wins / n, b + reach)
    assert (won.low, won.high) == pytest.approx((max(0, wide[0]), min(1, wide[1])))


def test_rows_of_one_item_are_one_observation() -> None:
    # Ten copies of each verdict are no new evidence: the interval must not shrink.
    single = delta_interval(rows_of(*"wlwwltlww"))
    copies = delta_interval(rows_of(*(letter * 10 for letter in "wlwwltlww")))
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high))


@settings(max_examples=40, deadline=None)
@given(ITEMS)
def test_swapping_every_row_negates_and_mirrors(items: list[str]) -> None:
    rows = rows_of(*items)
    assert [row.swap().swap() for row in rows] == rows
    seen, swapped = delta_interval(rows), delta_interval([row.swap() for row in rows])
    expected = (-seen.estimate, -seen.high, -seen.low)
    assert (swapped.estimate, swapped.low, swapped.high) == pytest.approx(expected, nan_ok=True)
    assert tally(rows).share("win") == pytest.approx(tally([row.swap() for row in rows]).share("loss"), nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(ITEMS, st.randoms(use_true_random=False))
def test_estimates_equal_the_tally_and_row_order_is_irrelevant(items: list[str], random) -> None:
    rows = rows_of(*items)
    shuffled = random.sample(rows, len(rows))
    interval = delta_interval(rows)
    assert interval.estimate == pytest.approx(delta(tally(rows)), nan_ok=True)
    assert win_rate_interval(rows).estimate == pytest.approx(tally(rows).share("win"), nan_ok=True)
    again = delta_interval(shuffled)
    assert (again.low, again.high) == pytest.approx((interval.low, interval.high), nan_ok=True)


@pytest.mark.parametrize("items", [["w"], ["w"] * 50, ["l"] * 5, ["t", "i", "t"], ["w"] * 5000])
def test_equal_outcomes_give_an_interval_with_a_width(items: list[str]) -> None:
    interval = delta_interval(rows_of(*items))
    difference = paired_difference(rows_of(*items), rows_of(*items))
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.high - interval.low > 1 / (len(items) + 1)
    assert difference.estimate == 0
    assert difference.low == pytest.approx(-difference.high)
    assert difference.high > 1 / (len(items) + 1)


def test_paired_difference_cancels_what_the_items_share() -> None:
    # A beats B on one item of eight whatever the item's difficulty: A-B is +1 or 0 per item.
    shared = list("wwwllll")
    a, b = rows_of(*shared, "w"), rows_of(*shared, "t")
    interval = paired_difference(a, b)
    assert interval.estimate == pytest.approx(1 / 8)
    apart = delta_interval(a)
    assert interval.high - interval.low < (apart.high - apart.low) / 1.3
    mirrored = paired_difference(b, a)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))


@given(st.lists(st.tuples(st.sampled_from("wtl"), st.sampled_from("wtl")), min_size=2, max_size=30))
def test_a_paired_difference_is_the_mean_of_differences_with_one_more_each_way(items: list[tuple[str, str]]) -> None:
    differences = np.array([*(SIGN[a] - SIGN[b] for a, b in items), 1, -1], dtype=float)
    reach = stats.t.ppf(0.975, len(items) - 1) * stats.sem(differences)
    found = paired_difference(rows_of(*(a for a, _ in items)), rows_of(*(b for _, b in items)))
    assert found.estimate == pytest.approx(np.mean([SIGN[a] - SIGN[b] for a, b in items]))
    expected = (
        max(-2, min(found.estimate, differences.mean() - reach)),
        min(2, max(found.estimate, differences.mean() + reach)),
    )
    assert (found.low, found.high) == pytest.approx(expected)


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
    assert mean_interval([7.5]).estimate == 7.5
    assert math.isnan(mean_interval([7.5]).low)
    assert math.isnan(mean_interval([]).estimate)
    with pytest.raises(ValueError, match="NaN or infinite"):
        mean_interval([1.0, math.nan])
    values = np.random.default_rng(0).normal(3, 2, size=40)
    found, independent = mean_interval(values, confidence=0.9), sm.stats.DescrStatsW(values).tconfint_mean(0.1)
    assert (found.low, found.high) == pytest.approx(independent)


@pytest.mark.parametrize("win_rate", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("ties", [0.0, 0.25])
def test_the_exact_coverage_of_a_known_delta(win_rate: float, ties: float) -> None:
    """The probabilities of all outcomes of 40 items whose interval has the truth; the slow test has a larger grid."""
    covered = exact_coverage(40, win_rate, ties)
    assert 0.935 <= covered <= (1.0 if win_rate > 0.8 else 0.975)


def exact_coverage(items: int, win_rate: float, ties: float) -> float:
    """The probability that the 95% interval of one verdict an item has the true Delta, over all outcomes."""
    won, lost = (1 - ties) * win_rate, (1 - ties) * (1 - win_rate)
    wins, losses = (axis.ravel() for axis in np.meshgrid(np.arange(items + 1), np.arange(items + 1)))
    wins, losses = wins[wins + losses <= items], losses[wins + losses <= items]
    likely = stats.multinomial.pmf(np.stack([wins, losses, items - wins - losses], 1), items, [won, lost, ties])
    found = {}
    for w, l in {(int(w), int(l)) for w, l, p in zip(wins, losses, likely, strict=True) if p > 1e-12}:
        interval = delta_interval(rows_of(*"w" * w, *"l" * l, *"t" * (items - w - l)))
        found[w, l] = interval.low - 1e-12 <= won - lost <= interval.high + 1e-12
    return float(sum(p for w, l, p in zip(wins, losses, likely, strict=True) if found.get((int(w), int(l)))))


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
    # With unequal numbers of rows an item, against scipy's bootstrap.
    generator = np.random.default_rng(3)
    items = ["".join(generator.choice(list("wtl"), size=size)) for size in generator.integers(1, 5, 300)]
    sums, counts = np.array([[sum(SIGN[x] for x in item), len(item)] for item in items], dtype=float).T
    drawn = stats.bootstrap((sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, rng=generator)
    interval = delta_interval(rows_of(*items))
    assert standard_error(rows_of(*items)) == pytest.approx(drawn.standard_error, rel=0.06)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.968 * drawn.standard_error, rel=0.06)
