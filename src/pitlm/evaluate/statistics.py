"""Statistics over verdict rows: pure functions, no files, no models.

The figure of merit is the paper's: Delta = win rate - lose rate (paper, Section Evaluation). The paper reports no
intervals; ours are over items, so that several rows of one item never count as independent evidence.

Rates are fractions of the *judged* rows: wins, ties, losses and inconsistent verdicts. A reply that could not be parsed
is no evidence at all: numerator and denominator leave it out, and it is counted apart.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pitlm.core.verdicts import Verdict, VerdictRow

Floats = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
SIGNS = {Verdict.WIN: 1.0, Verdict.LOSS: -1.0}
"""What each verdict adds to Delta; 0 for a verdict that is not named."""

CELLS_PER_BATCH = 4_000_000
"""Bounds the scratch memory of one bootstrap of a ranking to about 32 MB per array."""


class Resampling(TypedDict, total=False):
    """How an interval is made: the number of resamples of items, the confidence of the interval, and the seed."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How often each of the five verdicts came up."""

    win: int = 0
    tie: int = 0
    loss: int = 0
    inconsistent: int = 0
    unparsable: int = 0

    @property
    def judged(self) -> int:
        """Rows with a usable verdict: all but the unparsable ones."""
        return self.win + self.tie + self.loss + self.inconsistent

    def share(self, verdict: str) -> float:
        """How often a verdict came up, as a fraction of the judged rows; NaN when nothing was judged."""
        return float(getattr(self, verdict)) / self.judged if self.judged else math.nan


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval, in the unit of the estimate."""

    estimate: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero (False for NaN)."""
        return self.low > 0 or self.high < 0


def tally(rows: Iterable[VerdictRow]) -> Tally:
    """Count the verdicts of ``rows``, each seen from the row's first system."""
    return Tally(**Counter(row.verdict.value for row in rows))


def systems_of(rows: Iterable[VerdictRow]) -> list[str]:
    """The names of all systems in ``rows``, sorted."""
    return sorted({name for row in rows for name in (row.first, row.second)})


def rows_for(rows: Iterable[VerdictRow], first: str, second: str) -> list[VerdictRow]:
    """The rows that compare ``first`` with ``second``, seen from ``first``, in their given order.

    A row that was stored the other way round is swapped; all other rows are left out.
    """
    own = (row for row in rows if {row.first, row.second} == {first, second})
    return [row if row.first == first else row.swap() for row in own]


def delta_interval(rows: Iterable[VerdictRow], *, confidence: float = CONFIDENCE) -> Interval:
    """Delta with its interval over items: Bonett and Price's (2012), made to hold for several rows an item (ours).

    The estimate is the win rate less the lose rate. For the interval a won item and a lost item are added. The error is
    that of a ratio of sums over items, with Student's t. So the interval has a width where every item was won: 50 wins
    of 50 give [+88.4, +100.0] points.

    Returns:
        Fractions in [-1, 1], not percentages; all NaN when nothing was judged.
    """
    return ratio_interval([_arrays(outcomes_by_item(rows, SIGNS))], -1.0, 1.0, confidence)


def standard_error(rows: Iterable[VerdictRow]) -> float:
    """The standard error of Delta over items (ours): that of a ratio of sums, by linearisation.

    With one row per item it is the textbook's sample standard deviation over the root of n. NaN below two items.
    """
    sums, counts = _arrays(outcomes_by_item(rows, SIGNS))
    items = len(sums)
    if items < 2:
        return math.nan
    squares = (sums - counts * (sums.sum() / counts.sum())) ** 2
    return float(np.sqrt(items / (items - 1) * squares.sum()) / counts.sum())


def win_rate_interval(rows: Iterable[VerdictRow], *, confidence: float = CONFIDENCE) -> Interval:
    """The win rate with its interval over items, made as in :func:`delta_interval`.

    The estimate is the share of wins in ``tally(rows)``.
    """
    return ratio_interval([_arrays(outcomes_by_item(rows, {Verdict.WIN: 1.0}))], 0.0, 1.0, confidence)


def paired_difference(
    rows_a: Sequence[VerdictRow], rows_b: Sequence[VerdictRow], *, confidence: float = CONFIDENCE
) -> Interval:
    """Delta(A against the original) minus Delta(B against the original), over the same items (ours).

    What makes an item easy or hard for both systems cancels. An item on which A or B has no judged row is left out for
    both: otherwise the two Deltas would be about different items. The interval is made as in
    :func:`delta_interval`, with one more item in favour of A and one in favour of B.
    """
    both = outcomes_by_item(rows_a, SIGNS), outcomes_by_item(rows_b, SIGNS)
    (a, n), (b, m) = (_arrays(found, both[0].keys() & both[1].keys()) for found in both)
    return ratio_interval([(a, n), (-b, m)], -2.0, 2.0, confidence)


def mean_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """The mean of one value per item, with Student's t interval.

    Returns:
        In the unit of the values; all NaN when there are none, bounds of NaN for a single value.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("mean_interval: found a value that is NaN or infinite, expected finite numbers")
    estimate = float(array.mean()) if len(array) else math.nan
    reach = float(stats.t.ppf((1 + confidence) / 2, len(array) - 1) * stats.sem(array)) if len(array) > 1 else math.nan
    return Interval(estimate, estimate - reach, estimate + reach, confidence)


def outcomes_by_item(rows: Iterable[VerdictRow], outcome: Mapping[Verdict, float]) -> dict[str, tuple[float, int]]:
    """Per item the sum of its outcomes and the number of its judged rows; items without a judged row are absent.

    Args:
        outcome: what each verdict counts; 0 for a verdict that is not named.
    """
    found: dict[str, tuple[float, int]] = {}
    for row in rows:
        if row.verdict is not Verdict.UNPARSABLE:
            total, count = found.get(row.item, (0.0, 0))
            found[row.item] = (total + outcome.get(row.verdict, 0.0), count + 1)
    return found


def _arrays(found: Mapping[str, tuple[float, int]], keep: Collection[str] | None = None) -> tuple[Floats, Floats]:
    """Sums and counts of the items to keep, each of shape (items,).

    Items come in sorted order, so that neither the order of the rows nor that of two systems' files can change the
    last digit of an interval.
    """
    pairs = [found[item] for item in sorted(found if keep is None else keep)]
    sums, counts = np.array(pairs, dtype=np.float64).reshape(-1, 2).T.copy()
    return sums, counts


def ratio_interval(parts: Sequence[tuple[Floats, Floats]], low: float, high: float, confidence: float) -> Interval:
    """The sum of ratios with its interval; each part has the sums and the counts of the same items, shape (items,).

    Two items are added: in the first part their outcomes are 1 and max(``low``, -1), in the second 0. The error is that
    of the ratios by linearisation. ``low`` and ``high`` bound the interval. All NaN without items.
    """
    items = len(parts[0][0])
    if items == 0:
        return Interval(math.nan, math.nan, math.nan, confidence)
    centre, influence = 0.0, np.zeros(items + 2)
    for (sums, counts), outcomes in zip(parts, ((1.0, max(low, -1.0)), (0.0, 0.0)), strict=False):
        size = counts.mean()
        more, all_counts = np.append(sums, size * np.array(outcomes)), np.append(counts, [size, size])
        ratio = more.sum() / all_counts.sum()
        centre, influence = centre + ratio, influence + (more - all_counts * ratio) / all_counts.sum()
    error = math.sqrt((items + 2) / (items + 1) * (influence**2).sum())
    reach = float(stats.t.ppf((1 + confidence) / 2, max(1, items - 1))) * error
    estimate = sum(float(sums.sum() / counts.sum()) for sums, counts in parts)
    below, above = min(float(centre - reach), estimate), max(float(centre + reach), estimate)
    return Interval(estimate, max(low, below), min(high, above), confidence)


class ItemDraws:
    """A bootstrap over items for statistics of weights, which scipy's bootstrap does not know.

    Attributes:
        weights: how often each item is drawn in each resample, shape (resamples, items); each row's sum is ``items``.
    """

    def __init__(self, items: int, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.weights: Floats = generator.multinomial(items, np.full(items, 1 / items), size=resamples).astype(float)
        self.confidence = confidence

    def interval(self, estimate: float, draws: Sequence[float] | Floats) -> Interval:
        """The percentile interval of one statistic's ``draws`` around its ``estimate``.

        Draws that are NaN, because a resample leaves a statistic undefined, are left out. Without any other draw the
        bounds are NaN.
        """
        finite = np.asarray(draws, dtype=np.float64)
        finite = finite[np.isfinite(finite)]
        tails = [(1 - self.confidence) / 2, (1 + self.confidence) / 2]
        low, high = np.quantile(finite, tails) if finite.size else (math.nan, math.nan)
        return Interval(estimate, float(low), float(high), self.confidence)


def share(right: Sequence[bool] | np.ndarray[Any, Any]) -> dict[str, float]:
    """A share with its exact binomial (Clopper-Pearson) 95% interval."""
    n, k = len(right), int(np.sum(right))
    if n == 0:
        return {"estimate": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    interval = stats.binomtest(k, n).proportion_ci(0.95)
    return {"estimate": k / n, "low": float(interval.low), "high": float(interval.high), "n": n}
