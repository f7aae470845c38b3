"""Systems on one scale from comparisons of any pairs of them: Bradley-Terry and Elo, with intervals. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.statistics import CELLS_PER_BATCH, CONFIDENCE, Floats, Interval, ItemDraws, Resampling

FREE, HELD = 100.0, 2.0
"""Standard deviations of the prior on each strength, in log-odds: one only helps numerically, the other restrains."""

ELO_START, ELO_SCALE, ELO_STEP = 1000.0, 400.0, 4.0
SHUFFLES = 500

_OUTCOMES = {
    Verdict.WIN: (1.0, 0.0, 0.0),
    Verdict.TIE: (0.0, 1.0, 0.0),
    Verdict.LOSS: (0.0, 0.0, 1.0),
    Verdict.INCONSISTENT: (0.5, 0.0, 0.5),
}

# (first system, second system, +1 if the first was shown first, -1 if it was shown second, 0 if unknown)
Cell = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A fitted Bradley-Terry model.

    Attributes:
        strengths: log-odds, their sum is zero; the difference of two is the log-odds of a win against a loss.
            Strongest first.
        position: log-odds that being shown first adds; None if the rows cannot tell it from the strengths.
        tie: Davidson's nu: between equals, a tie is nu times as likely as a win; 0 if there was no tie.
        exists: whether the maximum-likelihood estimate exists. If it does not, because some system or group of
            systems never lost (or never won) against the rest, a normal prior with standard deviation ``HELD`` keeps
            the strengths finite: read their order, not their distances.
    """

    strengths: Mapping[str, Interval]
    position: Interval | None
    tie: float
    exists: bool


def bradley_terry(rows: Iterable[VerdictRow], **how: Unpack[Resampling]) -> Ranking:
    """Bradley-Terry with ties (Davidson, 1970) and a position term (Davidson and Beaver, 1977).

    "i wins", "tie" and "j wins" are as likely as exp(d / 2) to nu to exp(-d / 2), where d = s_i - s_j + position * z
    and z is 1 if i was shown first, -1 if j was, 0 if this is unknown. Every row counts once: a row with
    several parsable replies is split evenly among them, each with the position that it was asked in; an inconsistent
    row without replies is half a win and half a loss; an unparsable row is left out.

    Intervals are percentile bootstraps over items (ours). A prior of standard deviation ``FREE`` lets every resample be
    fitted; it moves an estimate that exists by less than any digit shown.

    Returns:
        A ranking without systems when no row was judged.
    """
    items, cells, names, counts_ICO = _table(rows)
    if not names:
        return Ranking({}, None, 0.0, True)
    total_CO = counts_ICO.sum(axis=0)
    ties = bool(total_CO[:, 1].any())
    design_COP = _design(cells, names, ties=ties)
    exists = _strongly_connected(cells, total_CO, names)
    precision = (FREE if exists else HELD) ** -2
    estimate = _fit(total_CO[None], design_COP, ties, precision)[0]
    drawn = ItemDraws(len(items), **how)
    size = max(1, CELLS_PER_BATCH // design_COP.size)
    batches = np.split(drawn.weights, range(size, len(drawn.weights), size))
    draws_BP = np.concatenate([_fit(np.tensordot(b, counts_ICO, axes=1), design_COP, ties, precision) for b in batches])
    intervals = [drawn.interval(float(value), draws) for value, draws in zip(estimate, draws_BP.T, strict=True)]
    position = intervals[len(names)] if len(intervals) > len(names) + ties else None
    return Ranking(_strongest_first(names, intervals), position, float(np.exp(estimate[-1])) if ties else 0.0, exists)


def elo(
    rows: Iterable[VerdictRow], *, shuffles: int = SHUFFLES, confidence: float = CONFIDENCE, seed: int = 0
) -> dict[str, Interval]:
    """Elo ratings after one pass over the rows, strongest first; a tie or inconsistent row is a draw.

    Elo depends on the order and on K (``ELO_STEP``), and has not settled after few rows. If every row has a time, the
    order is that of the times. Else the estimate is the mean over ``shuffles`` random orders. Each bound is a
    percentile over ``shuffles`` resamples of items, in the order of the times or each in a random order. Rows of one
    item and pair are one game, at the time of the first. Prefer :func:`bradley_terry`, which depends neither on the
    order nor on K; Elo is here because people ask for it.
    """
    rows = [row for row in rows if row.verdict is not Verdict.UNPARSABLE]
    items, cells, names, counts_ICO = _table(rows)
    if not names:
        return {}
    owner, cell = np.nonzero(counts_ICO.sum(axis=2))
    players = np.array([[names.index(first), names.index(second)] for first, second, _ in cells])[cell]
    outcomes = counts_ICO[owner, cell]
    weights = outcomes.sum(axis=1)
    scores = np.stack([(outcomes[:, 0] + outcomes[:, 1] / 2) / weights, weights], axis=1)
    generator = np.random.default_rng(seed)
    if timed := by_time(rows):
        latest = sorted(rows, key=lambda row: row.time or 0.0, reverse=True)  # so the first time is written last
        when = {(row.item, *sorted((row.first, row.second))): row.time for row in latest}
        times = [when[items[o], *cells[c][:2]] for o, c in zip(owner, cell, strict=True)]
        in_time = np.argsort(np.array(times, dtype=np.float64), kind="stable")
    once = [in_time] if timed else [generator.permutation(len(players)) for _ in range(shuffles)]
    drawn = ItemDraws(len(items), shuffles, confidence, seed)
    resampled = [
        np.repeat(in_time, own[in_time]) if timed else generator.permutation(np.repeat(np.arange(len(players)), own))
        for own in drawn.weights.astype(int)[:, owner]
    ]
    straight, draws = (_play(players, scores, orders, len(names)) for orders in (once, resampled))
    ratings = [drawn.interval(float(own.mean()), resample) for own, resample in zip(straight.T, draws.T, strict=True)]
    return _strongest_first(names, ratings)


def by_time(rows: Iterable[VerdictRow]) -> bool:
    """Whether Elo takes the rows in the order of their times: all of them have one."""
    return all(row.time is not None for row in rows)


def _strongest_first(names: Sequence[str], found: Sequence[Interval]) -> dict[str, Interval]:
    return dict(sorted(zip(names, found, strict=False), key=lambda pair: -pair[1].estimate))


def _play(players: Floats, scores: Floats, orders: Sequence[NDArray[Any]], systems: int) -> Floats:
    """Ratings after each order of games, shape (orders, systems); all orders advance by one game at a time."""
    longest = max(len(order) for order in orders)
    padded = np.array([np.pad(order, (0, longest - len(order)), constant_values=-1) for order in orders])
    ratings = np.full((len(orders), systems), ELO_START)
    lanes = np.arange(len(orders))
    for game in padded.T:
        first, second = players[game].T
        expected = 1 / (1 + 10 ** ((ratings[lanes, second] - ratings[lanes, first]) / ELO_SCALE))
        move = ELO_STEP * scores[game, 1] * (scores[game, 0] - expected) * (game >= 0)
        ratings[lanes, first] += move
        ratings[lanes, second] -= move
    return ratings


def _table(rows: Iterable[VerdictRow]) -> tuple[list[str], list[Cell], list[str], Floats]:
    """Items, cells and systems in sorted order, and the counts of (win, tie, loss), shape (items, cells, 3)."""
    found: list[tuple[str, Cell, tuple[float, ...]]] = []
    for row in rows:
        if row.verdict is Verdict.UNPARSABLE:
            continue
        # One orientation for each pair, so that a row and its swap are the same observation.
        seen = row if row.first <= row.second else row.swap()
        replies = [(r.verdict, -1 if r.swapped else 1) for r in seen.replies if r.verdict in _OUTCOMES]
        asked = replies or [(seen.verdict, 0)]
        for verdict, place in asked:
            shares = tuple(share / len(asked) for share in _OUTCOMES[verdict])
            found.append((seen.item, (seen.first, seen.second, place), shares))
    items, cells = sorted({item for item, _, _ in found}), sorted({cell for _, cell, _ in found})
    at_item, at_cell = {i: n for n, i in enumerate(items)}, {c: n for n, c in enumerate(cells)}
    counts = np.zeros((len(items), len(cells), 3))
    for item, cell, shares in found:
        counts[at_item[item], at_cell[cell]] += shares
    return items, cells, sorted({name for cell in cells for name in cell[:2]}), counts


def _design(cells: Sequence[Cell], names: Sequence[str], *, ties: bool) -> Floats:
    """What each parameter adds to the score of (win, tie, loss) in each cell, shape (cells, 3, parameters).

    The parameters are the strengths, the position and the tie. The position is left out if every pair was asked in one
    order only, because such cells cannot tell it from the strengths. The tie is left out if there was none.
    """
    half_CP = np.array([[float(name == c[0]) - float(name == c[1]) for name in names] for c in cells]) / 2
    placed_CP = np.hstack([half_CP, np.array([[cell[2] / 2] for cell in cells])])
    if np.linalg.matrix_rank(placed_CP) > np.linalg.matrix_rank(half_CP):
        half_CP = placed_CP
    design_COP = np.stack([half_CP, np.zeros_like(half_CP), -half_CP], axis=1)
    tie_CO1 = np.broadcast_to(np.array([0.0, 1.0, 0.0])[None, :, None], (len(cells), 3, 1))
    return np.concatenate([design_COP, tie_CO1], axis=2) if ties else design_COP


def _strongly_connected(cells: Sequence[Cell], total_CO: Floats, names: Sequence[str]) -> bool:
    """Ford's (1957) condition: each system beat each other one, maybe through others; a tie counts both ways."""
    beats = np.zeros((len(names), len(names)))
    for (first, second, _), (win, tie, loss) in zip(cells, total_CO, strict=True):
        i, j = names.index(first), names.index(second)
        beats[i, j] += win + tie
        beats[j, i] += loss + tie
    return int(connected_components(beats, directed=True, connection="strong")[0]) == 1


def _fit(counts_BCO: Floats, design_COP: Floats, ties: bool, precision: float) -> Floats:
    """Newton's method for B multinomial logits at once, with a normal prior; shape (B, parameters)."""
    parameters = design_COP.shape[2]
    flat = design_COP.reshape(-1, parameters)
    squares = (flat[:, :, None] * flat[:, None, :]).reshape(len(flat), -1)
    offset = np.array([0.0, 0.0 if ties else -np.inf, 0.0])
    games_BC1 = counts_BCO.sum(axis=2, keepdims=True)
    beta = np.zeros((len(counts_BCO), parameters))
    for _ in range(200):
        scores = np.tensordot(beta, design_COP, axes=(1, 2)) + offset
        p_BCO = np.exp(scores - scores.max(axis=2, keepdims=True))
        p_BCO /= p_BCO.sum(axis=2, keepdims=True)
        expected = (games_BC1 * p_BCO).reshape(len(beta), -1)
        gradient = (counts_BCO.reshape(len(beta), -1) - expected) @ flat - precision * beta
        means_BCP = np.einsum("bco,cop->bcp", p_BCO, design_COP)
        hessian = (expected @ squares).reshape(-1, parameters, parameters) + precision * np.eye(parameters)
        hessian -= np.einsum("bcp,bcq->bpq", games_BC1 * means_BCP, means_BCP)
        move = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        # Steps of at most 2 log-odds, because Newton's step may overshoot when the optimum is far.
        move *= np.minimum(1.0, 2.0 / np.maximum(np.abs(move).max(axis=1, keepdims=True), 1e-12))
        beta += move
        if np.abs(move).max() < 1e-9:
            break
    return beta
