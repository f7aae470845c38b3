"""The win rates of AlpacaEval: the figures of its leaderboard, and the win rate if both answers were equally long.

Pure functions over verdict rows.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats
from scipy.sparse import diags, hstack, vstack
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.statistics import CONFIDENCE, Floats, Interval

MIN_SYSTEMS = 3
"""Items have a difficulty only if at least this many systems have rows with lengths."""
SPREAD, WIDE = 1.5, 10.0
"""Standard deviations of the normal priors, in log-odds: of an item's effect, and of all other effects."""
ALONE_ITEMS, ALONE_SHARE = 30, 0.05
"""Without difficulties a figure needs this many items, and this share of answers that are longer, and shorter."""

_SEPARATED = 15.0
"""A coefficient beyond this is a fit that runs away: odds of three million to one."""
_SCORES = {Verdict.WIN: 1.0, Verdict.LOSS: 0.0, Verdict.TIE: 0.5, Verdict.INCONSISTENT: 0.5}


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """AlpacaEval's figures of one system against one baseline; rates are percentages, a draw is half a win.

    Attributes:
        win_rate: mean of preference - 1; NaN without rows.
        standard_error: of the win rate over rows (n - 1 in the variance); NaN for fewer than two.
        n_wins: preferences above 1.5; ``n_wins_base`` those below, ``n_draws`` those of exactly 1.5 (or 0).
        n_total: preferences that are not null.
        discrete_win_rate: the win rate with each preference rounded to a win, a loss or, if exactly 1.5, a draw.
    """

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate.

    Attributes:
        win_rate: a fraction, ties as half wins; NaN if the model cannot be fitted, for the ``reason`` given.
        length_effect: log-odds that tanh of the standardised length difference adds.
        with_difficulty: whether the difficulty of the items was in the model.
    """

    win_rate: Interval
    length_effect: float
    with_difficulty: bool
    reason: str = ""


def preference(row: VerdictRow) -> float | None:
    """How far ``row`` prefers its first system, in [0, 1]: its strength if it has one, else its verdict.

    Ties and inconsistent verdicts are 0.5; an unparsable row is None.
    """
    if row.verdict is Verdict.UNPARSABLE:
        return None
    return row.strength if row.strength is not None else _SCORES[row.verdict]


def leaderboard(rows: Iterable[VerdictRow]) -> Leaderboard:
    """The figures that AlpacaEval's ``get_winrate`` computes; an inconsistent verdict counts as a draw."""
    given = np.array([p for row in rows if (p := preference(row)) is not None], dtype=np.float64)
    wins, losses, total = int((given > 0.5).sum()), int((given < 0.5).sum()), len(given)
    draws = total - wins - losses
    rate, discrete = (100 * float(given.mean()), 100 * (wins + draws / 2) / total) if total else (math.nan, math.nan)
    error = 100 * float(stats.sem(given)) if total > 1 else math.nan
    return Leaderboard(rate, error, wins, losses, draws, total, discrete)


def length_controlled(
    rows: Sequence[VerdictRow], *, difficulty: Mapping[str, float] | None = None, confidence: float = CONFIDENCE
) -> LengthControlled | None:
    """The win rate of the first system at equal lengths, after Dubois et al. (2024), "Length-Controlled AlpacaEval".

    A logistic regression predicts the preference from a constant, tanh(length difference / its standard deviation) and,
    if it is given, the difficulty of the item. The win rate is the mean prediction with the length difference set to 0.
    This is the formula of AlpacaEval 2's ``length_controlled_v1``. The figures are close to AlpacaEval's but not equal,
    because of these differences:

    - they penalise (L1, strength by cross-validation) and add rows of their baseline with shortened and lengthened
      answers, at weight 0.2; here there is no penalty and no such rows;
    - their difficulties are fixed numbers for their 805 instructions, from a joint fit over their leaderboard; here
      they come from :func:`item_difficulty`, or are left out. Without difficulties, an item that is hard and has a
      long answer of the baseline counts as an effect of length;
    - they report no interval of the model's own; here it is from a covariance that is robust to several rows an item,
      by the delta method, on the scale of log-odds. It takes the length differences' standard deviation as known.

    Returns:
        None if no judged row has lengths. Without difficulties there is no figure if the items are few, or the answers
        nearly always longer, or shorter: equal lengths then lie outside of what was seen.
    """
    kept = _usable(rows)
    if not kept:
        return None
    y = np.array([p for _, p, _ in kept])

    def undefined(reason: str) -> LengthControlled:
        nothing = Interval(math.nan, math.nan, math.nan, confidence)
        return LengthControlled(nothing, math.nan, False, "all outcomes are equal" if y.min() == y.max() else reason)

    gaps, standardised = np.array([first - second for _, _, (first, second) in kept]), _standardised(kept)
    items = len({row.item for row, _, _ in kept})
    if items < 2 or y.min() == y.max() or (gaps.any() and not standardised.any()):
        return undefined("the length differences do not vary")
    columns = [np.ones(len(kept)), *([standardised] if gaps.any() else [])]
    if difficulty is not None:
        columns.append(np.array([difficulty[row.item] for row, _, _ in kept]))
    design = np.stack(columns, axis=1)
    # Where every answer is much longer, the column of lengths is nearly constant, as the first one is.
    if len(design) <= len(columns) or np.linalg.cond(design) > 1e6:
        return undefined("there are too few rows for the model, or rows too much alike")
    groups = np.unique([row.item for row, _, _ in kept], return_inverse=True)[1]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        try:
            fit = GLM(y, design, family=Binomial()).fit(cov_type="cluster", cov_kwds={"groups": groups})
        except np.linalg.LinAlgError:
            return undefined("wins and losses are separated, so the model has no finite fit")
    if not np.isfinite(fit.params).all() or np.abs(fit.params).max() > _SEPARATED:
        return undefined("wins and losses are separated, so the model has no finite fit")
    if difficulty is None and items < ALONE_ITEMS:
        return undefined(f"{items} items are too few without other systems")
    if difficulty is None and gaps.any() and min((gaps >= 0).mean(), (gaps <= 0).mean()) < ALONE_SHARE:
        return undefined(f"the answers are nearly always {'longer' if gaps.mean() > 0 else 'shorter'}")
    if gaps.any():
        design[:, 1] = 0.0
    interval = _mean_prediction(design, fit.params, fit.cov_params(), confidence)
    return LengthControlled(interval, float(fit.params[1]) if gaps.any() else 0.0, difficulty is not None)


def item_difficulty(against: Mapping[str, Sequence[VerdictRow]]) -> dict[str, dict[str, float]]:
    """How much each item favours the other systems over the baseline, in log-odds, without the effect of length.

    One logistic regression of all systems has a constant for each system, the length difference (as in
    :func:`length_controlled`), the mean of the item's length differences, and an effect for each item with a normal
    prior (ridge). For each system it is fitted without the system's own rows, which must not predict themselves. The
    mean of the item's length differences (Mundlak, 1978) keeps apart two effects of an item that all systems share: its
    answer of the baseline is long, and it is hard for them. Ours; AlpacaEval has fixed numbers for its 805 items.

    Args:
        against: the rows of each system against one baseline, seen from the system. Unparsable rows and rows without
            lengths are left out.

    Returns:
        By system and item; lower is harder. Empty with fewer than ``MIN_SYSTEMS`` systems that have such rows, or if
        all outcomes are equal.
    """
    known = {name: own for name, rows in against.items() if (own := _usable(rows))}
    outcomes = np.array([p for own in known.values() for _, p, _ in own])
    if len(known) < MIN_SYSTEMS or outcomes.min() == outcomes.max():
        return {}
    lengths = np.concatenate([_standardised(own) for own in known.values()])
    system = np.repeat(np.arange(len(known)), [len(own) for own in known.values()])
    items, item = np.unique([row.item for own in known.values() for row, _, _ in own], return_inverse=True)
    shared = np.bincount(item, lengths) / np.bincount(item)
    names = OneHotEncoder().fit_transform(np.stack([system, item], axis=1))  # columns of systems, then of items
    spreads = np.repeat([WIDE, SPREAD, WIDE], [len(known), len(items), 2])
    design = hstack([names, np.stack([lengths, shared[item]], axis=1)]) @ diags(spreads)
    # Each row once as a win and once as a loss, weighted, because scikit-learn takes no share of a win.
    twice, won = vstack([design, design]), np.repeat([1, 0], len(item))
    model = LogisticRegression(fit_intercept=False, solver="newton-cg", warm_start=True, max_iter=1000)
    found = {}
    for number, name in enumerate(known):
        others = system != number
        if not np.isin(item[~others], item[others]).all():
            continue  # nothing tells how hard an item of its own is
        model.fit(twice, won, sample_weight=np.concatenate([outcomes * others, (1 - outcomes) * others]))
        effects = spreads * model.coef_[0]
        found[name] = dict(zip(items.tolist(), (effects[len(known) : -2] + effects[-1] * shared).tolist(), strict=True))
    return found


def _usable(rows: Iterable[VerdictRow]) -> list[tuple[VerdictRow, float, tuple[int, int]]]:
    """The rows with a preference and lengths."""
    return [(row, p, row.lengths) for row in rows if (p := preference(row)) is not None and row.lengths is not None]


def _standardised(rows: Sequence[tuple[VerdictRow, float, tuple[int, int]]]) -> Floats:
    """tanh of each length difference divided by the standard deviation of the differences; 0 if these do not vary."""
    gaps = np.array([first - second for _, _, (first, second) in rows], dtype=np.float64)
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    return np.asarray(np.tanh(gaps / spread) if spread else np.zeros(len(gaps)), dtype=np.float64)


def _mean_prediction(design: Floats, params: Floats, covariance: Floats, confidence: float) -> Interval:
    predicted = special.expit(design @ params)
    mean = float(predicted.mean())
    slope = ((predicted * (1 - predicted))[:, None] * design).mean(axis=0)
    reach = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(slope @ covariance @ slope) / (mean * (1 - mean))
    centre = special.logit(mean)
    return Interval(mean, float(special.expit(centre - reach)), float(special.expit(centre + reach)), confidence)
