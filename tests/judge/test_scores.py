"""A judge that compares scores."""

from __future__ import annotations

import pytest

from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Verdict
from pitlm.judge.scores import ScoreJudge

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
    assert JUDGE.verdict(1.0 + difference, 1.0) is expected


def test_each_response_is_scored_beside_its_own_prompt():
    judge = ScoreJudge(
        "match", lambda prompts, responses: [float(x.text == y) for x, y in zip(prompts, responses, strict=True)]
    )
    comparisons = [Comparison(Prompt.of("a"), "a", "b"), Comparison(Prompt.of("b"), "a", "b")]
    assert [row.verdict for row in judge.judge(comparisons)] == [Verdict.WIN, Verdict.LOSS]


def test_nothing_to_judge_is_no_error():
    assert JUDGE.judge([]) == []
