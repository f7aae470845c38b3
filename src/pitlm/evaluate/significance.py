"""Whether a Delta is more than chance, and how many items would show a Delta: pure functions over verdict rows.

All tests are paired by item: the rows of one item are one observation, their mean of +1 (win), 0 and -1 (loss).
"""

import bisect
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
TEETH = 24
"""How far above the first hit to search, in items: the power rises in teeth of about two decisive items."""
NOTHING, MOST_POINTS = 1e-25, 1 << 22
"""Parts of the transform that count as zero, and how many points it may have, so that memory stays small."""
GRID = 2520
"""Above this common denominator values are rounded to 1 / this, so that a test of many items is quick."""
LEAST = 1e-15
"""The smallest p: the rounding of the transform hides smaller ones."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two tests of "no difference" over items.

    Attributes:
        items: with a judged row (in both systems, if two are compared).
        better: items with a positive value; ``worse`` those with a negative one. The others are even.
        p: two-sided and exact (with very uneven rows an upper bound), over all ways to flip the signs of items: a test
            of the mean, that is of Delta.
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
    return _test((outcome,) for outcome in outcomes_by_item(rows, SIGNS).values())


def difference_test(rows_a: Iterable[VerdictRow], rows_b: Iterable[VerdictRow]) -> PairedTest:
    """Test Delta(A) = Delta(B), both against the same opponent, over the items that both have a judged row for."""
    a, b = outcomes_by_item(rows_a, SIGNS), outcomes_by_item(rows_b, SIGNS)
    return _test((a[item], b[item]) for item in a if item in b)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p, in the given order; a NaN stays NaN and is not counted as a test."""
    given = np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(given)
    if tested.any():
        given[tested] = multipletests(given[tested], method="holm")[1]
    return [float(p) for p in given]


def power(items: int, delta: float, *, tie_rate: float) -> float:
    """The probability that the exact test at level ``ALPHA`` finds a true Delta, with one verdict per item.

    With one verdict an item, :func:`delta_test` is the exact test of wins against losses among m decisive items. The
    result is exact up to 1e-9, because m and the wins are binomial.
    """
    decisive = 1 - tie_rate
    won = min(1.0, (1 + abs(delta) / decisive) / 2)
    low, high = stats.binom.interval(1 - 1e-9, items, decisive)
    m = np.arange(max(0, low), high + 1)
    most = stats.binom.ppf(ALPHA / 2, m, 0.5) - 1  # the test is significant if wins, or losses, are at most this
    found = stats.binom.cdf(most, m, won) + stats.binom.cdf(most, m, 1 - won)
    return float((stats.binom.pmf(m, items, decisive) * found).sum())


def items_needed(delta: float, *, tie_rate: float) -> int | None:
    """The smallest number of items from which on the exact test at level ``ALPHA`` has the power ``POWER``.

    The power of an exact test does not rise steadily, but this number and every larger one have at least that power.

    Args:
        delta: a fraction, of either sign.
        tie_rate: the share of judged items that are neither won nor lost: ties and inconsistent verdicts.

    Returns:
        None if ``delta`` is 0, or larger than this tie rate allows.
    """
    if not 0 < abs(delta) <= 1 - tie_rate + 1e-9:  # 1 - 0.9 is a little less than 0.1
        return None
    enough = 8
    while power(enough, delta, tie_rate=tie_rate) < POWER:
        enough *= 2
    low = bisect.bisect_left(range(enough), POWER, key=lambda items: power(max(1, items), delta, tie_rate=tie_rate))
    short = (items for items in range(low + TEETH, 0, -1) if power(items, delta, tie_rate=tie_rate) < POWER)
    return next(short, 0) + 1


def detectable_delta(items: int, *, tie_rate: float) -> float:
    """The smallest Delta that ``items`` items show with probability ``POWER``; NaN if they can show none."""

    def surplus(delta: float) -> float:
        return power(items, delta, tie_rate=tie_rate) - POWER

    if items < 1 or not tie_rate < 1 or surplus(1 - tie_rate) < 0:
        return math.nan
    return float(optimize.brentq(surplus, 0.0, 1 - tie_rate))


def _test(outcomes: Iterable[tuple[tuple[float, int], ...]]) -> PairedTest:
    """Both tests of one value an item: its Delta, or its Delta for A less that for B.

    ``p`` is the share of all assignments of signs to the values whose sum is at least as far from 0 as the observed
    sum. All 2^n assignments are counted at once: the sum of +-m_1, +-m_2, ... has the characteristic function
    cos(m_1 t) cos(m_2 t) ..., and the fast Fourier transform turns this function into probabilities (to about 1e-15,
    so no p is below that). scipy would enumerate the assignments, or sample them.

    Items with different numbers of rows have many denominators. Then the values are rounded to 1 / ``GRID``, and p
    also counts sums that rounding may have brought below the observed one. So p is a little too large, never too small.

    Args:
        outcomes: of each item the sum and the number of its verdicts, for A alone or for A and B.
    """
    items = Counter[Fraction]()
    for each, count in Counter(outcomes).items():  # items have few different outcomes, and fractions are slow
        value, *other = (Fraction(int(total), verdicts) for total, verdicts in each)
        items[value - sum(other)] += count
    if not items:
        return PairedTest(0, 0, 0, math.nan, math.nan)
    common = math.lcm(*(value.denominator for value in items))
    most = MOST_POINTS // math.ceil(1 + 2 * sum(abs(value) * count for value, count in items.items()))
    scale = max(1, min(common, GRID, most))
    whole = {value: round(value * scale) for value in items}
    slack = 0 if scale == common else 2 * sum(abs(v * scale - size) * items[v] for v, size in whole.items())
    sizes = Counter[int]()
    for value, size in whole.items():
        sizes[abs(size)] += items[value]
    points = 2 * sum(size * count for size, count in sizes.items()) + 1
    characteristic, left = np.ones(points), np.arange(points)
    for size, count in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
        characteristic[left] *= np.cos(size * (2 * np.pi * left / points)) ** count
        left = left[np.abs(characteristic[left]) > NOTHING]  # of many items nearly all points are zero soon
    probability = np.fft.fft(characteristic).real / points  # at index s or, for s < 0, points + s
    found = max(0, math.ceil(abs(sum(size * items[value] for value, size in whole.items())) - slack))
    p = float(np.clip(probability[found : points - found + 1].sum(), LEAST, 1.0))
    better, worse = (sum(n for v, n in items.items() if sign * v > 0) for sign in (1, -1))
    sign_p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return PairedTest(items.total(), better, worse, p, sign_p)
