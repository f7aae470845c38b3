"""AlpacaEval's published leaderboard; length control against scikit-learn's fit, a known truth, and without a fit."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.alpaca import item_difficulty, leaderboard, length_controlled, preference
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
    made = [annotation_from_dict({"preference": p, "instruction": f"{n}"}, n) for n, p in enumerate(preferences)]
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


WIN, TIE, LOSS = Verdict.WIN, Verdict.TIE, Verdict.LOSS


def row(item: int, strength: float, lengths: tuple[int, int] | None, first: str = "m") -> VerdictRow:
    verdict = WIN if strength > 0.5 else LOSS if strength < 0.5 else TIE
    return VerdictRow(f"{item:05d}", first, "base", verdict, strength=strength, lengths=lengths)


def simulated(
    items: int, skill: float, taste: float, seed: int, *, hard: float = 0.0, binary: bool = True
) -> list[VerdictRow]:
    generator = np.random.default_rng(seed)
    mine, theirs = generator.integers(200, 900, items), generator.integers(100, 700, items)
    gaps = (mine - theirs) / (mine - theirs).std(ddof=1)
    p = expit(skill + taste * np.tanh(gaps) + hard * generator.normal(size=items))
    outcomes = (generator.random(items) < p).astype(float) if binary else p
    return [row(n, float(y), (int(a), int(b))) for n, (y, a, b) in enumerate(zip(outcomes, mine, theirs, strict=True))]


def test_the_fit_is_scikit_learns():
    rows = simulated(300, 0.3, 1.2, seed=2, binary=False)
    gaps = np.array([a - b for a, b in (r.lengths for r in rows)], dtype=float)
    x, y = np.tanh(gaps / gaps.std(ddof=1)), np.array([r.strength for r in rows])
    # AlpacaEval's way to fit a preference between 0 and 1: each row once as a win and once as a loss, weighted.
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(np.r_[x, x][:, None], np.r_[np.ones(300), np.zeros(300)], sample_weight=np.r_[y, 1 - y])
    found = length_controlled(rows)
    assert found.length_effect == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert found.win_rate.estimate == pytest.approx(expit(model.intercept_[0]), abs=1e-5)
    assert found.win_rate.estimate == pytest.approx(expit(0.3), abs=1e-3)  # noiseless


def test_a_taste_for_length_is_taken_out():
    rows = simulated(4000, 0.0, 2.0, seed=3)
    raw = np.mean([r.strength for r in rows])
    found = length_controlled(rows).win_rate
    assert raw > 0.6  # the system's answers are longer, and the judge prefers longer ones
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.06


def test_the_interval_covers():
    found = [length_controlled(simulated(150, 0.4, 1.0, seed=seed)).win_rate for seed in range(200)]
    covered = np.mean([interval.low <= expit(0.4) <= interval.high for interval in found])
    # Four standard errors of a binomial with p = 0.95 and n = 200 are 0.06.
    assert covered >= 0.89


def test_several_rows_of_an_item_are_not_more_evidence():
    rows = simulated(200, 0.4, 1.0, seed=1)
    once, thrice = length_controlled(rows).win_rate, length_controlled(rows * 3).win_rate
    assert thrice.estimate == pytest.approx(once.estimate, abs=1e-3)  # n - 1 differs
    assert thrice.low == pytest.approx(once.low, abs=3e-3)


def test_swapping_all_rows_turns_the_rate_round():
    rows = simulated(120, 0.4, 1.0, seed=5)
    forth, back = length_controlled(rows), length_controlled([r.swap() for r in rows])
    assert back.win_rate.estimate == pytest.approx(1 - forth.win_rate.estimate)
    assert (back.win_rate.low, back.win_rate.high) == pytest.approx((1 - forth.win_rate.high, 1 - forth.win_rate.low))
    assert back.length_effect == pytest.approx(forth.length_effect)


def test_equal_lengths_leave_the_raw_rate():
    rows = [row(n, float(n < 30), (50, 50)) for n in range(40)]
    found = length_controlled(rows)
    assert found.win_rate.estimate == pytest.approx(0.75)
    # The textbook interval of a proportion on the scale of log-odds.
    reach = 1.96 * math.sqrt(40 / 39 / (40 * 0.75 * 0.25))
    assert logit(found.win_rate.low) == pytest.approx(logit(0.75) - reach, abs=1e-3)


def test_a_singular_fit_of_few_rows_has_a_reason(monkeypatch):
    """Seen in a run with eight items."""

    def fit(*given, **settings):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr("pitlm.evaluate.alpaca.GLM.fit", fit)
    assert "no finite fit" in length_controlled(simulated(40, 0.4, 1.0, seed=1)).reason


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row(n, 1.0, (n + 10, 5)) for n in range(20)], "all outcomes are equal"),
        ([row(n, 0.5, (n + 10, 25)) for n in range(50)], "all outcomes are equal"),
        ([row(n, float(n >= 10), (n, 10)) for n in range(20)], "separated"),
        ([row(n, float(n % 2), (30, 10)) for n in range(20)], "do not vary"),
        ([row(0, 1.0, (30, 10)), row(0, 0.0, (20, 10))], "do not vary"),
        ([row(0, 1.0, (30, 10)), row(1, 0.0, (20, 10))], "too few rows"),
        ([row(n, float(n % 3 > 0), (10**6 + n % 2, 10)) for n in range(40)], "too much alike"),
    ],
)
def test_what_has_no_fit_says_why(rows, reason):
    found = length_controlled(rows)
    assert math.isnan(found.win_rate.estimate)
    assert reason in found.reason


def test_rows_without_lengths_or_verdict_are_left_out():
    assert length_controlled([]) is None
    assert length_controlled([row(0, 1.0, None)]) is None
    assert length_controlled([VerdictRow("0", "a", "b", Verdict.UNPARSABLE, lengths=(1, 2))]) is None
    rows = simulated(60, 0.4, 1.0, seed=1)
    more = [*rows, row(99, 1.0, None), VerdictRow("98", "m", "base", Verdict.UNPARSABLE, lengths=(10, 9000))]
    assert length_controlled(more) == length_controlled(rows)


def test_preference():
    assert [preference(VerdictRow("0", "a", "b", v)) for v in (WIN, TIE, LOSS, Verdict.INCONSISTENT, Verdict.UNPARSABLE)] == [
        1.0, 0.5, 0.0, 0.5, None,
    ]  # fmt: skip
    assert preference(row(0, 0.7, None)) == 0.7


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch):
    """Simulated systems against one baseline: their rows, their true win rates at equal lengths, the difficulties."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("intervals").several


def errors(against: dict, truth: np.ndarray) -> list[float]:
    """Points between each system's rate at equal lengths and the truth."""
    difficulty = item_difficulty(against)
    found = [length_controlled(rows, difficulty=difficulty[name]).win_rate for name, rows in against.items()]
    return [100 * (one.estimate - true) for one, true in zip(found, truth, strict=True)]


@pytest.mark.parametrize("shared", [0.0, 0.95])
@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_a_taste_for_length_that_all_systems_share_is_taken_out(several, shared, hard):
    """The error of the same fit with the true difficulty would be about 1.4 points here, by sampling alone."""
    against, truth, _ = several(12, 600, shared, hard, seed=1)
    off = errors(against, truth)
    assert np.mean(np.abs(off)) < 2.2
    assert abs(np.mean(off)) < 1.5


def test_no_systems_own_outcomes_are_in_its_difficulties(several):
    against, _, _ = several(4, 60, 0.5, 0.0, seed=2)
    before = item_difficulty(against)
    lost = {**against, "s0": [replace(r, verdict=LOSS) for r in against["s0"]]}
    after = item_difficulty(lost)
    assert list(after["s0"].values()) == pytest.approx(list(before["s0"].values()), abs=1e-3)
    assert list(after["s1"].values()) != pytest.approx(list(before["s1"].values()), abs=0.1)


def test_harder_items_are_found_harder():
    generator = np.random.default_rng(5)
    hardness = generator.normal(0, 1.5, 200)
    against = {
        name: [row(n, float(generator.random() < expit(h)), (500, 500), name) for n, h in enumerate(hardness)]
        for name in "abcdefgh"
    }
    found = item_difficulty(against)["a"]
    assert np.corrcoef(hardness, list(found.values()))[0, 1] > 0.8


def test_a_system_with_items_of_its_own_stands_alone(several):
    against, _, _ = several(4, 60, 0.5, 0.0, seed=2)
    lone = [replace(r, item=f"own {r.item}", first="lone") for r in against["s0"]]
    assert list(item_difficulty({**against, "lone": lone})) == ["s0", "s1", "s2", "s3"]


def test_few_systems_or_equal_outcomes_have_no_difficulties(several):
    against, _, _ = several(3, 40, 0.5, 0.0, seed=0)
    assert item_difficulty({}) == item_difficulty({name: against[name] for name in ("s0", "s1")}) == {}
    assert item_difficulty({name: [row(n, 1.0, (n, 9), name) for n in range(20)] for name in "abc"}) == {}
    assert (
        item_difficulty({**against, "s0": [row(0, 1.0, None, "s0")]}) == {}
    )  # a system without lengths does not count


@pytest.mark.parametrize("sign", [1, -1])
def test_a_system_alone_has_no_figure_where_equal_lengths_were_not_seen(sign):
    generator = np.random.default_rng(0)
    gaps = sign * generator.integers(-3, 100, 400)
    rows = [row(n, float(generator.random() < 0.6), (500 + int(gap), 500)) for n, gap in enumerate(gaps)]
    found = length_controlled(rows)
    assert math.isnan(found.win_rate.estimate)
    assert found.reason == f"the answers are nearly always {'longer' if sign > 0 else 'shorter'}"
    assert length_controlled(rows, difficulty={r.item: 0.1 * (int(r.item) % 7) for r in rows}).win_rate.estimate > 0
    assert length_controlled(simulated(25, 0.4, 1.0, seed=1)).reason == "25 items are too few without other systems"


def test_difficulty_goes_into_the_model():
    rows = simulated(400, 0.4, 1.0, seed=6)
    generator = np.random.default_rng(0)
    found = length_controlled(rows, difficulty={r.item: float(generator.normal()) for r in rows})
    plain = length_controlled(rows)
    assert (found.with_difficulty, plain.with_difficulty) == (True, False)
    assert found.win_rate.estimate == pytest.approx(plain.win_rate.estimate, abs=0.01)  # noise changes little
