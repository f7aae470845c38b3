"""Is a Delta more than chance, and how many items would show one: pure functions over verdict rows.

All tests are paired by item: the rows of one item are one observation, their mean of +1 (win), 0 and -1 (loss).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

from pitlm.core.verdicts import Row, Verdict

PERMUTATIONS = 10_000
ALPHA = 0.05
POWER = 0.8

_CELLS_PER_BATCH = 4_000_000
_SIGN = {Verdict.WIN: 1.0, Verdict.LOSS: -1.0}


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two tests of "no difference" over items.

    Attributes:
        items: with a judged row (in both systems, where two are compared).
        better: items with a positive value; ``worse`` those with a negative one. The others are even.
        p: two-sided, by flipping the signs of items at random: a test of the mean, that is of Delta.
        sign_p: two-sided and exact, of ``better`` against ``worse`` alone: the sign test, which with one verdict an
            item is McNemar's exact test.
    """

    items: int
    better: int
    worse: int
    p: float
    sign_p: float


def delta_test(rows: Iterable[Row], *, permutations: int = PERMUTATIONS, seed: int = 0) -> PairedTest:
    """Test Delta = 0. All p are NaN when nothing was judged."""
    return _test(list(_item_deltas(rows).values()), permutations, seed)


def difference_test(
    rows_a: Iterable[Row], rows_b: Iterable[Row], *, permutations: int = PERMUTATIONS, seed: int = 0
) -> PairedTest:
    """Test Delta(A) = Delta(B), both against the same opponent, over the items that both have a judged row for."""
    a, b = _item_deltas(rows_a), _item_deltas(rows_b)
    return _test([a[item] - b[item] for item in a if item in b], permutations, seed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p, in the given order; a NaN stays NaN and is not counted as a test."""
    given = np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(given)
    if tested.any():
        given[tested] = multipletests(given[tested], method="holm")[1]
    return [float(p) for p in given]


def items_needed(delta: float, *, tie_rate: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Items for which a two-sided test at ``alpha`` finds a true Delta with probability ``power``.

    Connor (1987), the sample size of McNemar's test: (z_a sqrt(q) + z_b sqrt(q - Delta^2))^2 / Delta^2, where q is the
    share of items that are won or lost.

    Args:
        delta: a fraction, of either sign.
        tie_rate: the share of judged items that are neither won nor lost: ties and inconsistent verdicts.

    Raises:
        ValueError: ``delta`` is 0, or larger than so many ties allow.
    """
    decisive = 1 - tie_rate
    if not 0 < abs(delta) <= decisive:
        raise ValueError(
            f"items_needed: found a Delta of {delta:g} with a tie rate of {tie_rate:g}, expected one that is not 0 and "
            f"at most {decisive:g}, the share of items that are not ties"
        )
    # Rounded first: an exact whole number must not become the next one for an error in the last digit.
    return math.ceil(round((_noise(abs(delta), decisive, alpha, power) / delta) ** 2, 6))


def detectable_delta(items: int, *, tie_rate: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest Delta that ``items`` items show with probability ``power``; NaN where they can show none."""
    decisive = 1 - tie_rate

    def surplus(delta: float) -> float:
        return math.sqrt(items) * delta - _noise(delta, decisive, alpha, power)

    if items < 1 or decisive <= 0 or surplus(decisive) < 0:
        return math.nan
    return float(optimize.brentq(surplus, 0.0, decisive))


def _noise(delta: float, decisive: float, alpha: float, power: float) -> float:
    """sqrt(items) times the Delta that is just seen, in Connor's formula."""
    z_alpha, z_beta = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    return float(z_alpha * math.sqrt(decisive) + z_beta * math.sqrt(max(0.0, decisive - delta**2)))


def _item_deltas(rows: Iterable[Row]) -> dict[str, float]:
    """Delta of each item that has a judged row, in sorted order."""
    signs: dict[str, list[float]] = {}
    for row in rows:
        if row.verdict is not Verdict.UNPARSABLE:
            signs.setdefault(row.item, []).append(_SIGN.get(row.verdict, 0.0))
    return {item: sum(signs[item]) / len(signs[item]) for item in sorted(signs)}


def _test(values: Sequence[float], permutations: int, seed: int) -> PairedTest:
    better, worse = sum(value > 0 for value in values), sum(value < 0 for value in values)
    if not values:
        return PairedTest(0, 0, 0, math.nan, math.nan)
    if better + worse < 2:
        # Nothing to flip, or one sign whose two flips are equally extreme; scipy refuses both.
        return PairedTest(len(values), better, worse, 1.0, 1.0)
    # Items that are even have no sign to flip.
    decisive = np.array([value for value in values if value != 0])
    permuted = stats.permutation_test(
        (decisive,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, _CELLS_PER_BATCH // len(decisive)),
        rng=np.random.default_rng(seed),
    )
    sign_p = stats.binomtest(better, better + worse).pvalue
    return PairedTest(len(values), better, worse, float(permuted.pvalue), float(sign_p))
