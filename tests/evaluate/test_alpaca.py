"""AlpacaEval's figures, from its published leaderboard."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.alpaca import leaderboard
from pitlm.evaluate.verdict_files import annotation_from_dict

# alpaca_eval_gpt4_leaderboard.csv of tatsu-lab/alpaca_eval: win_rate, standard_error, n_wins, n_wins_base, n_draws,
# n_total. That annotator's preferences are only 1, 1.5 and 2, so the figures depend on the counts alone.
PUBLISHED = {
    "gpt4_turbo": (97.69900497512438, 0.5104849118311993, 783, 16, 5, 804),
    "pairrm-tulu-2-70b": (95.39800995024876, 0.7394089832625841, 767, 37, 0, 804),
    "Yi-34B-Chat": (94.08468244084682, 0.8260116588728516, 754, 46, 3, 803),
    "phi-2": (30.663329161451813, 1.6056202651534168, 234, 543, 22, 799),
    "text_davinci_003": (50.0, 0.0, 0, 0, 805, 805),
}
# weighted_alpaca_eval_gpt4_turbo_leaderboard.csv: n_wins, n_draws, n_total and discrete_win_rate.
DISCRETE = {
    "gpt-4o-2024-05-13": (429, 7, 805, 53.72670807453416),
    "aligner-2b_qwen1.5-72b-chat": (180, 152, 805, 31.801242236024844),
    "Meta-Llama-3.1-8B-Instruct-Turbo": (168, 2, 802, 21.07231920199501),
}


def rows_of(preferences) -> list[VerdictRow]:
    made = [annotation_from_dict({"preference": p, "instruction": f"{n}"}, "f", n) for n, p in enumerate(preferences)]
    return [annotation.row for annotation in made]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_leaderboard(name):
    win_rate, error, wins, losses, draws, total = PUBLISHED[name]
    found = leaderboard(rows_of([2.0] * wins + [1] * losses + [1.5] * draws + [None] * (805 - total)))
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (wins, losses, draws, total)
    assert found.win_rate == pytest.approx(win_rate, rel=1e-13)
    assert found.standard_error == pytest.approx(error, rel=1e-12)
    assert found.discrete_win_rate == pytest.approx(win_rate, rel=1e-13)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_published_discrete_win_rate(name):
    wins, draws, total, published = DISCRETE[name]
    preferences = [1.51] * wins + [1.5] * draws + [1.4999] * (total - wins - draws)
    assert leaderboard(rows_of(preferences)).discrete_win_rate == pytest.approx(published, rel=1e-13)


@given(st.lists(st.one_of(st.none(), st.floats(1, 2), st.sampled_from([0, 1, 1.5, 2])), max_size=40))
def test_continuous_preferences_as_pandas_computes_them(preferences):
    """The definitions in pandas, as AlpacaEval computes them."""
    series = pd.Series(preferences, dtype=float).replace({0.0: 1.5}).dropna() - 1
    found = leaderboard(rows_of(preferences))
    assert found.win_rate == pytest.approx(series.mean() * 100, rel=1e-12, nan_ok=True)
    assert found.standard_error == pytest.approx(series.sem() * 100, rel=1e-9, abs=1e-9, nan_ok=True)
    assert (found.n_wins, found.n_wins_base) == ((series > 0.5).sum(), (series < 0.5).sum())
    assert (found.n_draws, found.n_total) == ((series == 0.5).sum(), len(series))
    rounded = np.where(series == 0.5, 0.5, (series > 0.5).astype(float))
    assert found.discrete_win_rate == pytest.approx(rounded.mean() * 100 if len(series) else math.nan, nan_ok=True)


def test_rows_without_strength_count_by_their_verdict():
    verdicts = [Verdict.WIN, Verdict.WIN, Verdict.LOSS, Verdict.TIE, Verdict.INCONSISTENT, Verdict.UNPARSABLE]
    found = leaderboard([VerdictRow(f"{n}", "a", "b", verdict) for n, verdict in enumerate(verdicts)])
    assert (found.win_rate, found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (60, 2, 1, 2, 5)
    # By hand: deviations 0.4, 0.4, -0.6, -0.1, -0.1, squares sum to 0.7; the root of 0.7 / 4 / 5.
    assert found.standard_error == pytest.approx(100 * math.sqrt(0.7 / 4 / 5))
