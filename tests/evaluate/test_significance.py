"""Tests and power against published examples, enumeration, and simulation."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from verdict_rows import rows_of

from pitlm.evaluate.significance import GRID, delta_test, detectable_delta, difference_test, holm, items_needed, power

ITEMS = st.lists(st.text("wtliu", min_size=1, max_size=3), min_size=1, max_size=8)


def test_sign_test_is_mcnemars_exact_test():
    # Agresti, Categorical Data Analysis: approval ratings of 1600 people in two surveys (794, 150, 86, 570); McNemar's
    # z^2 = (86 - 150)^2 / 236 = 17.36, p = 3.099e-05. The exact p by hand: twice the binomial tail.
    found = delta_test(rows_of(*"w" * 150, *"l" * 86, *"t" * (794 + 570)))
    exact = 2 * sum(math.comb(236, k) for k in range(87)) / 2**236
    assert (found.items, found.better, found.worse) == (1600, 150, 86)
    assert found.sign_p == pytest.approx(exact)
    assert found.sign_p == pytest.approx(3.099e-05, rel=0.25)
    # With one verdict an item, flipping signs is the same test.
    assert found.p == pytest.approx(exact, rel=1e-6)


def test_nine_to_one_by_hand():
    assert delta_test(rows_of(*"wwwwwwwwwl")).p == pytest.approx(2 * (1 + 10) / 1024)


@given(ITEMS)
def test_sign_flips_equal_their_enumeration(items):
    values = []
    for text in items:
        judged = [{"w": 1, "l": -1}.get(letter, 0) for letter in text if letter != "u"]
        if judged:
            values.append(sum(judged) / len(judged))
    found = delta_test(rows_of(*items))
    assert found.items == len(values)
    if not values:
        assert math.isnan(found.p)
        assert math.isnan(found.sign_p)
        return
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert found.p == pytest.approx(np.mean([total >= abs(sum(values)) - 1e-9 for total in sums]))


def test_sign_flips_agree_with_scipys_permutations():
    generator = np.random.default_rng(4)
    letters = generator.choice(list("wtl"), size=(120, 2), p=[0.45, 0.2, 0.35])
    items = ["".join(pair) for pair in letters]
    values = np.array([[{"w": 1, "l": -1}.get(x, 0) for x in item] for item in items]).mean(axis=1)
    sampled = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=20_000, rng=generator
    )
    # Four standard errors of a proportion of 20,000.
    assert delta_test(rows_of(*items)).p == pytest.approx(sampled.pvalue, abs=4 * 0.5 / math.sqrt(20_000))


def test_the_difference_of_two_systems_is_tested_over_shared_items():
    a, b = rows_of("w", "w", "u", "t", "w"), rows_of("l", "w", "w", "t")
    found = difference_test(a, b)
    assert (found.items, found.better, found.worse) == (3, 1, 0)
    assert found.p == found.sign_p == 1.0  # one item that differs can never be significant
    many = difference_test(rows_of(*"w" * 10), rows_of(*"l" * 10))
    assert many.p == pytest.approx(2 / 1024)
    assert difference_test(rows_of(*"l" * 10), rows_of(*"w" * 10)).p == many.p


@given(ITEMS)
def test_tests_do_not_see_who_is_first_nor_the_order_of_rows(items):
    rows = rows_of(*items)
    found, swapped, turned = delta_test(rows), delta_test([row.swap() for row in rows]), delta_test(rows[::-1])
    assert (swapped.better, swapped.worse) == (found.worse, found.better)
    assert swapped.p == pytest.approx(found.p, nan_ok=True)
    assert turned == found or math.isnan(found.p)


def test_rows_of_one_item_are_one_observation():
    assert delta_test(rows_of("wwwwwwwwww")).p == 1.0
    assert delta_test(rows_of("ww", "l")).p == delta_test(rows_of("w", "l")).p


@pytest.mark.parametrize("rows", [[], rows_of("u", "uu")])
def test_nothing_judged_has_no_p(rows):
    found = delta_test(rows)
    assert found.items == 0
    assert math.isnan(found.p)
    assert delta_test(rows_of("t", "i")).p == 1.0


def test_holm_published_example():
    # The example in the documentation of pingouin.holm.
    assert holm([0.50, 0.003, 0.32, 0.054, 0.0003]) == pytest.approx([0.64, 0.012, 0.64, 0.162, 0.0015])


def test_holm_leaves_out_what_was_not_tested():
    with_nan = holm([0.01, math.nan, 0.02])
    assert with_nan[0] == pytest.approx(0.02)
    assert with_nan[2] == pytest.approx(0.02)
    assert math.isnan(with_nan[1])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        (0.45, 0.05, 23),  # powerandsamplesize.com, after Connor (1987): p01 0.45, p10 0.05
        (0.30, 0.15, 155),  # the published calculator example: discordant 0.45, odds ratio 2
    ],
)
def test_an_exact_test_needs_a_few_items_more_than_the_published_formula_says(first, second, pairs):
    needed = items_needed(first - second, tie_rate=1 - first - second)
    assert pairs < needed <= 1.15 * pairs + 2
    assert items_needed(second - first, tie_rate=1 - first - second) == needed


@pytest.mark.parametrize(("delta", "ties"), [(1.0, 0.0), (0.5, 0.0), (0.2, 0.3), (0.1, 0.9), (0.9, 0.1), (0.05, 0.5)])
def test_the_items_needed_have_the_promised_power_and_fewer_do_not(delta, ties):
    needed = items_needed(delta, tie_rate=ties)
    shares = [(1 - ties + delta) / 2, ties, max(0.0, (1 - ties - delta) / 2)]
    found = {}
    for items in (needed, needed - 1):
        draws = np.random.default_rng(0).multinomial(items, shares, size=5_000)
        counts, times = np.unique(draws, axis=0, return_counts=True)
        p = [
            delta_test(rows_of(*"w" * w, *"t" * t, *"l" * l)).p
            if items < 300
            else stats.binomtest(int(w), int(w + l)).pvalue
            for w, t, l in counts
        ]
        found[items] = times[np.array(p) <= 0.05].sum() / 5_000
        assert found[items] == pytest.approx(power(items, delta, tie_rate=ties), abs=0.025)
    assert found[needed] > 0.775
    assert power(needed - 1, delta, tie_rate=ties) < 0.8 <= power(needed, delta, tie_rate=ties)


def test_four_wins_are_never_enough():
    assert items_needed(1.0, tie_rate=0.0) == 6  # 2 / 2^5 is above 0.05, and 2 / 2^6 is not
    assert delta_test(rows_of(*"w" * 6)).p == pytest.approx(2 / 64)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.02, 0.5), st.floats(0, 0.45))
def test_detectable_is_the_inverse_of_needed(delta, ties):
    needed = items_needed(delta, tie_rate=ties)
    assert detectable_delta(needed, tie_rate=ties) <= delta * (1 + 1e-6)
    # One item fewer has less power; so few items may have none.
    fewer = detectable_delta(needed - 1, tie_rate=ties)
    assert math.isnan(fewer) or fewer >= delta * (1 - 1e-6)


@given(st.lists(st.text("wtl", min_size=1, max_size=17), min_size=1, max_size=9))
def test_uneven_rows_never_make_p_too_small(items):
    """Up to 17 rows an item have a common denominator of 12 million; p may then be a little above the exact one."""
    values = [sum({"w": 1, "l": -1}.get(x, 0) for x in item) / len(item) for item in items]
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    exact = np.mean([total >= abs(sum(values)) - 1e-9 for total in sums])
    near = np.mean([total >= abs(sum(values)) - 2 * len(items) / GRID for total in sums])
    assert exact - 1e-9 <= delta_test(rows_of(*items)).p <= near + 1e-9


def test_many_uneven_items_equal_the_normal_approximation():
    generator = np.random.default_rng(3)
    rows = rows_of(
        *("".join(generator.choice(list("wtl"), size, p=[0.36, 0.3, 0.34])) for size in generator.integers(1, 20, 900))
    )
    values = [sum({"w": 1, "l": -1}.get(x, 0) for x in item) / len(item) for item in _items(rows)]
    z = sum(values) / math.sqrt(sum(v * v for v in values))
    assert delta_test(rows).p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.02)


def _items(rows):
    found = {}
    for row in rows:
        found.setdefault(row.item, []).append({"win": "w", "tie": "t", "loss": "l"}[row.verdict])
    return found.values()


def test_uneven_rows_take_little_memory_and_a_tiny_p_is_not_zero():
    generator = np.random.default_rng(0)
    rows = rows_of(*("".join(generator.choice(list("wwwtl"), size=size)) for size in generator.integers(1, 18, 60)))
    tracemalloc.start()
    found = delta_test(rows)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert 0 < found.p < 1e-6
    assert delta_test(rows_of(*"w" * 200)).p > 0


def test_what_cannot_be_shown():
    assert math.isnan(detectable_delta(0, tie_rate=0.0))
    assert math.isnan(detectable_delta(100, tie_rate=1.0))
    assert math.isnan(detectable_delta(2, tie_rate=0.5))
    assert math.isnan(detectable_delta(10, tie_rate=math.nan))
    for delta, ties in ((0.0, 0.1), (0.6, 0.5)):
        assert items_needed(delta, tie_rate=ties) is None
    assert items_needed(0.5, tie_rate=math.nan) is None
