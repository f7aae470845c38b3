"""Whether a Delta is more than chance, and how many items would show a Delta: pure functions over verdict rows.

All tests are paired by item: the rows of one item are one observation, their mean of +1 (win), 0 and -1 (loss).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

from pitlm.core.verdicts import VerdictRow
from pitlm.evaluate.statistics import SIGNS, outcomes_by_item

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two tests of "no difference" over items.

    Attributes:
        items: with a judged row (in both systems, if two are compared).
        better: items with a positive value; ``worse`` those with a negative one. The others are even.
        p: two-sided and exact, over all ways to flip the signs of items: a test of the mean, that is of Delta.
        sign_p: two-sided and exact, of ``better`` against ``worse`` alone: the sign test, which with one verdict per
            item is McNemar's exact test.
    """

    items: int
    better: int
    worse: int
    p: float
    sign_p: float


def delta_test(rows: Iterable[VerdictRow]) -> PairedTest:
    """Test Delta = 0. Both p are NaN when nothing was judged."""
    return _test(list(_item_deltas(rows).values()))


def difference_test(rows_a: Iterable[VerdictRow], rows_b: Iterable[VerdictRow]) -> PairedTest:
    """Test Delta(A) = Delta(B), both against the same opponent, over the items that both have a judged row for."""
    a, b = _item_deltas(rows_a), _item_deltas(rows_b)
    return _test([a[item] - b[item] for item in a if item in b])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p, in the given order; a NaN stays NaN and is not counted as a test."""
    given = np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(given)
    if tested.any():
        given[tested] = multipletests(given[tested], method="holm")[1]
    return [float(p) for p in given]


def items_needed(delta: float, *, tie_rate: float) -> int | None:
    """Items for which a two-sided test at level ``ALPHA`` finds a true Delta with probability ``POWER``.

    Connor (1987), the sample size of McNemar's test: (z_a sqrt(q) + z_b sqrt(q - Delta^2))^2 / Delta^2, where q is the
    share of items that are won or lost. One verdict per item is assumed.

    Args:
        delta: a fraction, of either sign.
        tie_rate: the share of judged items that are neither won nor lost: ties and inconsistent verdicts.

    Returns:
        None if ``delta`` is 0, or larger than this tie rate allows.
    """
    decisive = 1 - tie_rate
    if not 0 < abs(delta) <= decisive:
        return None
    # Rounded first, so that an error in the last digit does not turn a whole number into the next one.
    return math.ceil(round((_noise(abs(delta), decisive) / delta) ** 2, 6))


def detectable_delta(items: int, *, tie_rate: float) -> float:
    """The smallest Delta that ``items`` items show with probability ``POWER``; NaN if they can show none."""
    decisive = 1 - tie_rate

    def surplus(delta: float) -> float:
        return math.sqrt(items) * delta - _noise(delta, decisive)

    if items < 1 or not decisive > 0 or surplus(decisive) < 0:
        return math.nan
    return float(optimize.brentq(surplus, 0.0, decisive))


def _noise(delta: float, decisive: float) -> float:
    """sqrt(n) * Delta in Connor's formula, for n items and the smallest Delta that they show."""
    z_alpha, z_beta = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(POWER)
    return float(z_alpha * math.sqrt(decisive) + z_beta * math.sqrt(max(0.0, decisive - delta**2)))


def _item_deltas(rows: Iterable[VerdictRow]) -> dict[str, Fraction]:
    """Delta of each item that has a judged row."""
    return {item: Fraction(int(total), count) for item, (total, count) in outcomes_by_item(rows, SIGNS).items()}


def _test(values: Sequence[Fraction]) -> PairedTest:
    """Both tests of one value an item.

    ``p`` is the share of all assignments of signs to the values whose sum is at least as far from 0 as the observed
    sum. All 2^n assignments are counted at once: the sum of +-m_1, +-m_2, ... has the characteristic function
    cos(m_1 t) cos(m_2 t) ..., and the fast Fourier transform turns this function into probabilities (to about 1e-15).
    scipy would enumerate the assignments, or sample them.
    """
    if not values:
        return PairedTest(0, 0, 0, math.nan, math.nan)
    scale = math.lcm(*(value.denominator for value in values))
    whole = [int(value * scale) for value in values]
    sizes = Counter(abs(value) for value in whole)
    points = 2 * sum(size * count for size, count in sizes.items()) + 1
    t = 2 * np.pi * np.arange(points) / points
    characteristic = np.prod([np.cos(size * t) ** count for size, count in sorted(sizes.items())], axis=0)
    probability = np.fft.fft(characteristic).real / points  # at index s or, for s < 0, points + s
    found = abs(sum(whole))
    p = float(np.clip(probability[found : points - found + 1].sum(), 0.0, 1.0))
    better, worse = sum(value > 0 for value in values), sum(value < 0 for value in values)
    sign_p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return PairedTest(len(values), better, worse, p, sign_p)
