"""The figures of AlpacaEval's leaderboard. A pure function over verdict rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pitlm.core.verdicts import VerdictRow
from pitlm.evaluate.length import preference


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """AlpacaEval's figures of one system against one baseline; rates are percentages, a draw is half a win.

    Attributes:
        win_rate: mean of preference - 1; NaN without rows.
        standard_error: of the win rate over rows (n - 1 in the variance); NaN for fewer than two.
        n_wins: preferences above 1.5; ``n_wins_base`` those below, ``n_draws`` those of exactly 1.5 (or 0).
        n_total: preferences that are not null.
        discrete_win_rate: the win rate with each preference rounded to a win or a loss, draws apart.
    """

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float


def leaderboard(rows: Iterable[VerdictRow]) -> Leaderboard:
    """What AlpacaEval's ``get_winrate`` makes of the same preferences; an inconsistent verdict is a draw there."""
    given = np.array([p for row in rows if (p := preference(row)) is not None], dtype=np.float64)
    wins, losses, total = int((given > 0.5).sum()), int((given < 0.5).sum()), len(given)
    draws = total - wins - losses
    return Leaderboard(
        win_rate=float(given.mean()) * 100 if total else math.nan,
        standard_error=float(stats.sem(given)) * 100 if total > 1 else math.nan,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=total,
        discrete_win_rate=(wins + draws / 2) / total * 100 if total else math.nan,
    )
