"""How far a judge agrees with itself in the other order, and with other judges: pure functions over verdict rows.

A human rater is a judge here.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate import statistics
from pitlm.evaluate.statistics import CONFIDENCE, Floats, Interval, ItemDraws, Resampling

Level = Literal["nominal", "ordinal"]

CATEGORIES = (Verdict.LOSS, Verdict.TIE, Verdict.WIN, Verdict.INCONSISTENT)
"""A verdict's code is its place here. The first three are in order; an inconsistent verdict has no place among them."""


@dataclass(frozen=True, slots=True)
class PositionBias:
    """Consistency and bias of one judge on the rows that it judged in both orders.

    Attributes:
        rows: with a parsable reply in both orders; only these count.
        first_both: rows on which the judge chose the response shown first, in both orders; ``second_both`` likewise.
        consistent: share of rows with the same verdict in both orders.
        bias: share of replies for the response shown first minus share for the other, in [-1, 1]; 0 without bias.
    """

    judge: str
    rows: int
    first_both: int
    second_both: int
    consistent: Interval
    bias: Interval


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of at least two judges; every kappa and alpha is 1 for perfect agreement and 0 for chance.

    Attributes:
        units: comparisons (an item and a pair of systems) with a usable verdict of at least two judges.
        cohen: for each two judges, over the comparisons that both judged.
        fleiss: over the ``complete`` comparisons, which all judges judged; NaN without such comparisons.
        nominal: Krippendorff's alpha over all units, where two verdicts are only equal or unequal.
        ordinal: the same with loss < tie < win; inconsistent verdicts are left out as missing.
    """

    judges: tuple[str, ...]
    units: int
    complete: int
    cohen: dict[tuple[str, str], Interval]
    fleiss: Interval
    nominal: Interval
    ordinal: Interval


def position_bias(rows: Iterable[VerdictRow], **how: Unpack[Resampling]) -> list[PositionBias]:
    """One entry for each judge that was asked in both orders, sorted by name; intervals are over items (ours)."""
    asked: dict[str, list[tuple[str, Verdict, Verdict]]] = {}
    for row in rows:
        # The last parsable reply in each order counts: an earlier one was asked again.
        last = {reply.swapped: reply.verdict for reply in row.replies if reply.verdict is not Verdict.UNPARSABLE}
        if len(last) == 2:
            # Both verdicts as seen from the response that was shown first.
            asked.setdefault(row.judge, []).append((row.item, last[False], last[True].swap()))
    found, confidence = [], how.get("confidence", CONFIDENCE)
    for judge, shown in sorted(asked.items()):
        same = [(item, Verdict.WIN if a is b.swap() else Verdict.LOSS) for item, a, b in shown]
        rows_of_same = [VerdictRow(item, "same", "other", verdict) for item, verdict in same]
        consistent = statistics.win_rate_interval(rows_of_same, confidence=confidence)
        firsts = [VerdictRow(item, "first", "second", verdict) for item, *both in shown for verdict in both]
        bias = statistics.delta_interval(firsts, confidence=confidence)
        first, second = (sum(a is b is verdict for _, a, b in shown) for verdict in (Verdict.WIN, Verdict.LOSS))
        found.append(PositionBias(judge, len(shown), first, second, consistent, bias))
    return found


def agreement(rows: Iterable[VerdictRow], **how: Unpack[Resampling]) -> Agreement | None:
    """How far the judges of ``rows`` agree; None if no comparison has two judges.

    All rows on a pair of systems are seen from the same system, whichever was stored first. Of several rows of a judge
    on one comparison the first counts. Unparsable rows are missing values. Cohen's and Fleiss' kappa are statsmodels'.
    The bootstraps draw items with all their comparisons (ours).
    """
    labels: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        seen = row if row.first <= row.second else row.swap()
        if seen.verdict is not Verdict.UNPARSABLE:
            given = labels.setdefault((seen.item, seen.first, seen.second), {})
            given.setdefault(seen.judge, CATEGORIES.index(seen.verdict))
    units = sorted(unit for unit, given in labels.items() if len(given) > 1)
    judges = tuple(sorted({judge for unit in units for judge in labels[unit]}))
    if not units:
        return None
    ratings = np.array([[labels[unit].get(judge, np.nan) for judge in judges] for unit in units])
    items, owner = np.unique([unit[0] for unit in units], return_inverse=True)
    drawn = ItemDraws(len(items), **how)
    weights = drawn.weights[:, owner].astype(int)

    def interval(statistic: Callable[[Any], float]) -> Interval:
        """The interval of a statistic, which is a function of the units' whole weights."""
        return drawn.interval(statistic(np.ones(len(units), dtype=int)), [statistic(draw) for draw in weights])

    ordered = np.where(ratings < CATEGORIES.index(Verdict.INCONSISTENT), ratings, np.nan)
    pairs = list(combinations(range(len(judges)), 2))
    complete = ~np.isnan(ratings).any(axis=1)
    counts = _counts(ratings[complete])
    cohen = {(judges[a], judges[b]): interval(_cohen(ratings[:, [a, b]])) for a, b in pairs}
    fleiss = interval(lambda draw: _fleiss(np.repeat(counts, draw[complete], axis=0)))
    nominal = interval(krippendorff_alpha(ratings, "nominal"))
    ordinal = interval(krippendorff_alpha(ordered, "ordinal"))
    return Agreement(judges, len(units), int(complete.sum()), cohen, fleiss, nominal, ordinal)


def _counts(ratings: Floats) -> NDArray[np.int64]:
    """How often each unit was given each category, shape (units, categories)."""
    top = int(np.nanmax(ratings, initial=0.0))
    return np.stack([(ratings == code).sum(axis=1) for code in range(top + 1)], axis=1)


def krippendorff_alpha(ratings: Floats, level: Level) -> Callable[[Any], float]:
    """Krippendorff's alpha (2011, "Computing Krippendorff's Alpha-Reliability") as a function of the units' weights.

    It is ours, because statsmodels has no alpha before 0.15.1, and the package ``krippendorff`` is under the GPL.

    Args:
        ratings: shape (units, raters), whole numbers from 0 in the order of the categories, NaN where missing.

    Returns:
        A function of whole weights, shape (units,). It gives NaN if no two ratings can be compared, or all are
        equal.
    """
    counts = _counts(ratings)
    raters = counts.sum(axis=1)
    counts, pairable = counts[raters > 1].astype(np.float64), raters > 1
    # Coincidences of one unit: its ordered pairs of ratings, over its ratings less one.
    ordered_pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    coincidences = ordered_pairs / (counts.sum(axis=1) - 1)[:, None, None]

    def statistic(weights: Any) -> float:
        observed = np.tensordot(weights[pairable], coincidences, axes=1)
        totals = observed.sum(axis=1)
        if level == "nominal":
            distance = 1 - np.eye(len(totals))
        else:
            # The squared number of ratings from one category to the other, half of both ends left out.
            middles = np.cumsum(totals) - totals / 2
            distance = np.subtract.outer(middles, middles) ** 2
        expected = float((np.outer(totals, totals) * distance).sum())
        return 1 - (totals.sum() - 1) * float((observed * distance).sum()) / expected if expected else math.nan

    return statistic


def _cohen(pair: Floats) -> Callable[[Any], float]:
    both = ~np.isnan(pair).any(axis=1)
    codes, size = pair[both].astype(int), len(CATEGORIES)
    cells = codes[:, 0] * size + codes[:, 1]

    def statistic(weights: Any) -> float:
        table = np.bincount(cells, weights[both], minlength=size * size).reshape(size, size)
        if table.sum(axis=0) @ table.sum(axis=1) == table.sum() ** 2:
            return math.nan  # no common comparison, or both judges always said the same: 0 / 0
        return float(cohens_kappa(table, return_results=False))

    return statistic


def _fleiss(counts: NDArray[np.int64]) -> float:
    if not len(counts) or (counts.sum(axis=0) > 0).sum() < 2:
        return math.nan
    return float(fleiss_kappa(counts))
