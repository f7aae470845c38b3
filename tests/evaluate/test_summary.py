"""The summary by hand, and changes that must not affect it."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from pitlm.core.errors import InputError
from pitlm.core.verdicts import Reply, Verdict, VerdictRow
from pitlm.evaluate.answer_figures import AnswerFigures
from pitlm.evaluate.statistics import delta_interval, rows_for
from pitlm.evaluate.summary import Summary, summarise

WIN, TIE, LOSS, INCONSISTENT, UNPARSABLE = list(Verdict)


def made(items: int = 60, judges: tuple[str, ...] = ("j", "k"), seed: int = 0) -> list[VerdictRow]:
    generator = np.random.default_rng(seed)
    rows = []
    for judge in judges:
        for n in range(items):
            for system, p in {"good": 0.6, "fair": 0.4, "poor": 0.2, "bad": 0.1}.items():
                a, b = ([WIN, TIE, LOSS][k] for k in generator.choice(3, size=2, p=[p, 0.1, 0.9 - p]))
                lengths = (int(generator.integers(50, 200)), int(generator.integers(50, 200)))
                replies = (Reply(False, a), Reply(True, b))
                verdict = Verdict.of_orders(a, b)
                rows.append(VerdictRow(f"{n:03d}", system, "base", verdict, None, None, replies, judge, lengths))
    return rows


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(made(), resamples=100, wanted=0.1)


def test_what_is_in_it(summary: Summary):
    assert (summary.baseline, summary.items, summary.rows) == ("base", 60, 480)
    assert [(s.judge, s.system) for s in summary.systems] == [
        (j, s) for j in "jk" for s in ("bad", "fair", "good", "poor")
    ]
    assert len(summary.differences) == 2 * 6
    assert list(summary.rankings) == list(summary.elo) == ["j", "k"]
    assert next(iter(summary.rankings["j"].strengths)) == "good"
    assert summary.rankings["j"].position is not None
    assert [line.judge for line in summary.position] == ["j", "k"]
    assert summary.agreement.units == 60 * 4
    assert all(s.length_controlled.with_difficulty for s in summary.systems)  # three other systems on every item


def test_figures_are_those_of_the_functions(summary: Summary):
    own = [row for row in rows_for(made(), "good", "base") if row.judge == "k"]
    [line] = [s for s in summary.systems if (s.judge, s.system) == ("k", "good")]
    assert line.delta == delta_interval(own)
    assert line.tally.judged == 60
    assert line.delta.estimate == pytest.approx(line.tally.share(WIN) - line.tally.share(LOSS))
    ranked = sorted(summary.systems, key=lambda s: s.test.p)
    assert ranked[0].p_holm == pytest.approx(min(1, 8 * ranked[0].test.p))
    assert all(s.p_holm >= s.test.p for s in summary.systems)


def test_difference_is_that_of_the_deltas(summary: Summary):
    delta = {s.system: s.delta.estimate for s in summary.systems if s.judge == "j"}
    for d in summary.differences:
        if d.judge == "j":
            assert d.delta.estimate == pytest.approx(delta[d.first] - delta[d.second])


def test_compared_systems_are_seen_from_the_first_of_each_pair(summary: Summary):
    [forth] = summary.compared("j", [("bad", "good")])
    [back] = summary.compared("j", [("good", "bad")])
    assert back.delta.estimate == -forth.delta.estimate > 0
    assert (back.delta.low, back.delta.high) == (-forth.delta.high, -forth.delta.low)
    assert (back.test.better, back.test.worse, back.test.p) == (forth.test.worse, forth.test.better, forth.test.p)
    assert (back.first, back.second, back.judge) == ("good", "bad", "j")
    assert summary.compared("j", [("good", "base"), ("good", "nobody")]) == []


def test_what_a_run_knows_is_shown_in_its_order_and_changes_no_rate(summary: Summary):
    known = {name: AnswerFigures(0.0, 10.0, 20.0, 30.0) for name in ("base", "poor", "good")}
    found = summarise(made(), answered=known, rank=None, resamples=100)
    assert [s.system for s in found.by("k")] == ["base", "poor", "good", "bad", "fair"]
    assert found.differences == summary.differences
    assert {(s.judge, s.system): (s.delta, s.test, s.p_holm) for s in found.systems if s.system != "base"} == {
        (s.judge, s.system): (s.delta, s.test, s.p_holm) for s in summary.systems
    }
    base, poor = found.by("k")[:2]
    assert (base.tally.judged, base.answered.generated_tokens) == (0, 20.0)
    assert math.isnan(base.delta.estimate)
    assert (poor.quality, poor.gain_per_100_tokens) == (None, None)  # this judge gives no scores
    assert (found.rankings, found.elo) == ({}, {})
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["systems"][0]["answered"]["prompt_tokens"] == 30.0


def test_as_dict_is_plain_json(summary: Summary):
    plain = summary.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["agreement"]["cohen"]["j / k"]["estimate"] == summary.agreement.cohen["j", "k"].estimate
    assert plain["settings"] == {
        "resamples": 100,
        "confidence": 0.95,
        "seed": 0,
        "wanted_delta": 0.1,
        "timed": {"j": False, "k": False},
    }


def test_neither_order_nor_swaps_of_rows_matter(summary: Summary):
    rows = [row.swap() if n % 3 else row for n, row in enumerate(made())]
    random.Random(1).shuffle(rows)
    again = summarise(rows, baseline="base", resamples=100, wanted=0.1).as_dict()
    assert flat(again) == pytest.approx(flat(summary.as_dict()), abs=1e-6)


def flat(value, path=""):
    """Flatten nested numbers to one number per path, because pytest.approx does not compare nested values."""
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in flat(inner, f"{path}.{name}").items()}
    if isinstance(value, list):
        return {k: v for n, inner in enumerate(value) for k, v in flat(inner, f"{path}.{n}").items()}
    return {path: value}


def test_swapping_the_baseline_turns_delta_round():
    rows = [VerdictRow(f"{n}", "a", "b", WIN if n < 7 else LOSS, strength=0.9 if n < 7 else 0.2) for n in range(10)]
    forth, back = summarise(rows, resamples=50), summarise(rows, baseline="a", resamples=50)
    assert (forth.baseline, back.baseline) == ("b", "a")
    [f], [b] = forth.systems, back.systems
    assert (f.delta.estimate, b.delta.estimate) == pytest.approx((0.4, -0.4))
    assert f.alpaca.win_rate == pytest.approx(69)
    assert b.alpaca.win_rate == pytest.approx(31)
    assert f.test.p == pytest.approx(b.test.p)
    assert forth.rankings == {}
    assert list(summarise(rows, rank=True, resamples=50).rankings[""].strengths) == ["a", "b"]


def test_systems_that_met_on_no_common_item_have_no_difference():
    rows = [VerdictRow("1", "a", "base", WIN), VerdictRow("2", "c", "base", LOSS)]
    found = summarise(rows, resamples=5)
    assert len(found.systems) == 2
    assert found.differences == []


@pytest.mark.parametrize("verdict", list(Verdict))
def test_one_row_of_any_kind(verdict):
    [line] = summarise([VerdictRow("1", "a", "b", verdict)], resamples=5, rank=True, wanted=0.5).systems
    assert math.isnan(line.standard_error)
    assert math.isnan(line.detectable)
    assert line.items_needed is None or line.items_needed > 0
    assert line.length_controlled is None


def test_all_wins():
    found = summarise(
        [VerdictRow(f"{n}", "a", "b", WIN, lengths=(n + 3, 5)) for n in range(20)], rank=True, resamples=50
    )
    [line] = found.systems
    assert (line.delta.estimate, line.standard_error) == (1, 0)
    assert line.test.p == pytest.approx(2 / 2**20)
    assert line.length_controlled.reason == "all outcomes are equal"
    assert not found.rankings[""].exists


def test_no_rows_and_no_such_baseline():
    with pytest.raises(ValueError, match="found no rows"):
        summarise([])
    with pytest.raises(InputError, match="--baseline: found 'z', expected one of a, b"):
        summarise([VerdictRow("1", "a", "b", WIN)], baseline="z")


def test_the_baseline_is_the_system_that_meets_all_others_wherever_it_stands():
    rows = [VerdictRow(f"{n}", "base", other, WIN) for n in range(9) for other in "xyz"]
    for given in (rows, [row.swap() for row in rows]):
        summary = summarise(given, resamples=20)
        assert (summary.baseline, [s.system for s in summary.systems]) == ("base", ["x", "y", "z"])
    assert summarise([VerdictRow("1", "new", "old", WIN)], resamples=20).baseline == "old"


def test_no_system_vanishes_without_a_word():
    rows = [VerdictRow(f"{n}", first, second, WIN) for n in range(9) for first, second in ("ab", "ac", "de", "aa")]
    summary = summarise(rows, resamples=20)
    assert (summary.baseline, summary.unmatched, summary.itself, summary.rows) == ("a", {"": ["d", "e"]}, 9, 27)
    with pytest.raises(InputError, match="found 9 comparisons of a system with itself"):
        summarise([row for row in rows if row.first == row.second])


def test_a_judge_without_a_verdict_against_the_baseline_is_named():
    rows = [VerdictRow(f"{n}", other, "base", WIN, judge="one") for n in range(9) for other in "cd"]
    summary = summarise([*rows, VerdictRow("1", "c", "d", WIN, judge="two")], resamples=20)
    assert (summary.baseline, summary.unmatched) == ("base", {"two": ["c", "d"]})
