"""A judge that compares scores."""

from __future__ import annotations

import pytest

from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Verdict
from pitlm.judge.scores import GapJudge, ScoreJudge

X = Prompt.of("x")
JUDGE = ScoreJudge("length", lambda prompts, responses: [float(len(y)) for y in responses], tie=0.5)


def test_the_higher_score_wins():
    comparisons = [Comparison(X, "aaa", "a"), Comparison(X, "a", "aaa"), Comparison(X, "aa", "bb")]
    assert [row.verdict for row in JUDGE.judge(comparisons)] == [Verdict.WIN, Verdict.LOSS, Verdict.TIE]


def test_swapping_a_comparison_swaps_its_verdict():
    comparisons = [Comparison(X, "a" * i, "b" * j) for i in range(4) for j in range(4)]
    straight, swapped = JUDGE.judge(comparisons), JUDGE.judge([comparison.swap() for comparison in comparisons])
    assert [row.swap() for row in straight] == swapped


@pytest.mark.parametrize(
    ("difference", "expected"), [(0.5, Verdict.TIE), (-0.5, Verdict.TIE), (0.51, Verdict.WIN), (-0.51, Verdict.LOSS)]
)
def test_scores_within_the_tie_width_are_a_tie(difference, expected):
    judge = ScoreJudge("number", lambda prompts, responses: [float(y) for y in responses], tie=0.5)
    (row,) = judge.judge([Comparison(X, str(1.0 + difference), "1.0")])
    assert row.verdict is expected


def test_each_response_is_scored_beside_its_own_prompt():
    judge = ScoreJudge(
        "match", lambda prompts, responses: [float(x.text == y) for x, y in zip(prompts, responses, strict=True)]
    )
    comparisons = [Comparison(Prompt.of("a"), "a", "b"), Comparison(Prompt.of("b"), "a", "b")]
    assert [row.verdict for row in judge.judge(comparisons)] == [Verdict.WIN, Verdict.LOSS]


def test_nothing_to_judge_is_no_error():
    assert JUDGE.judge([]) == []


def test_a_score_that_is_no_number_is_no_verdict():
    judge = ScoreJudge("picky", lambda prompts, responses: [float(y) for y in responses])
    rows = judge.judge([Comparison(X, "nan", "1"), Comparison(X, "1", "nan"), Comparison(X, "nan", "nan")])
    assert [(row.verdict, row.scores) for row in rows] == [(Verdict.UNPARSABLE, None)] * 3


def gap_judge(bias):
    """The gap is the difference in length, plus a bonus for the response."""
    return GapJudge("gap", lambda items: [float(len(i.response) - len(i.reference)) + bias for i in items], tie=0.25)


def test_the_gap_model_is_asked_in_both_orders():
    pair = Comparison(X, "aaa", "a")
    (fair,) = gap_judge(0.0).judge([pair])
    assert fair.verdict is Verdict.WIN
    assert [(r.swapped, r.verdict, r.text) for r in fair.replies] == [
        (False, Verdict.WIN, "+2.000000"),
        (True, Verdict.WIN, "-2.000000"),
    ]
    (biased,) = gap_judge(3.0).judge([pair])  # 2 + 3 > 0, and -2 + 3 > 0: the answer in question always wins
    assert biased.verdict is Verdict.INCONSISTENT
    assert [(r.swapped, r.verdict) for r in biased.replies] == [(False, Verdict.WIN), (True, Verdict.LOSS)]
    assert gap_judge(0.2).judge([Comparison(X, "a", "b")])[0].verdict is Verdict.TIE
    assert gap_judge(float("nan")).judge([pair])[0].verdict is Verdict.UNPARSABLE


@pytest.mark.parametrize("bias", [0.0, 0.5, -2.0, 3.0])
def test_swapping_swaps_the_gap_judge_s_verdicts_and_its_replies(bias):
    comparisons = [Comparison(X, "a" * i, "b" * j) for i in range(4) for j in range(4)]
    straight = gap_judge(bias).judge(comparisons)
    swapped = gap_judge(bias).judge([comparison.swap() for comparison in comparisons])
    assert [row.verdict.swap() for row in straight] == [row.verdict for row in swapped]
    for row, other in zip(straight, swapped, strict=True):
        assert sorted(row.swap().replies, key=lambda r: r.swapped) == list(other.replies)
