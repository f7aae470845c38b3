"""Systems against the original: rows and figures by hand."""

from __future__ import annotations

import pytest

from pitlm.core.nouns import Answer, Prompt
from pitlm.core.verdicts import Verdict
from pitlm.evaluate.compare import ORIGINAL, difference, judge_systems, summarise
from pitlm.judge.scores import ScoreJudge

QUALITY = {"bad": 0.0, "fair": 1.0, "good": 2.0}
JUDGE = ScoreJudge("table", lambda prompts, responses: [QUALITY[y] for y in responses])
PROMPTS = [Prompt.of(name) for name in ("a", "b", "c", "d")]
ANSWERS = {
    ORIGINAL: [Answer("fair"), Answer("fair"), Answer("bad"), Answer("good")],
    "better": [Answer("good", 10, 50), Answer("good", 20, 50), Answer("good", 30, 50), Answer("good", 40, 50)],
    "worse": [Answer("fair"), Answer("bad"), Answer("bad"), Answer("bad")],
}
LENGTHS = {ORIGINAL: [1, 2, 3, 4], "better": [2, 2, 2, 2], "worse": [1, 1, 1, 9]}


@pytest.fixture
def judged():
    return judge_systems(PROMPTS, ANSWERS, JUDGE)


def test_every_system_meets_the_original_once_an_item(judged):
    rows, scores = judged
    assert {(row.first, row.second) for row in rows} == {("better", ORIGINAL), ("worse", ORIGINAL)}
    verdicts = {name: [row.verdict for row in rows if row.first == name] for name in ("better", "worse")}
    assert verdicts["better"] == [Verdict.WIN, Verdict.WIN, Verdict.WIN, Verdict.TIE]
    assert verdicts["worse"] == [Verdict.TIE, Verdict.LOSS, Verdict.TIE, Verdict.LOSS]
    assert [row.scores for row in rows if row.first == "worse"] == [(1, 1), (0, 1), (0, 0), (0, 2)]
    assert len({row.item for row in rows}) == 4
    assert scores[ORIGINAL] == [1, 1, 0, 2]


def test_figures_by_hand(judged):
    original, better, worse = summarise(judged[0], ANSWERS, judged[1], LENGTHS, resamples=200)
    assert (better.tally.win, better.tally.tie, better.tally.loss) == (3, 1, 0)
    assert better.delta.estimate == 0.75
    assert worse.delta.estimate == -0.5
    assert better.quality.estimate == 2.0
    assert original.quality.estimate == 1.0
    assert (better.copy_rate, worse.copy_rate, original.copy_rate) == (0.25, 0.5, 1.0)
    assert (better.answer_tokens, worse.answer_tokens, original.answer_tokens) == (2.0, 3.0, 2.5)
    assert (better.generated_tokens, better.prompt_tokens) == (25.0, 50.0)
    # The mean rises from 1 to 2 for 25 tokens an item. A system that generated nothing has no such figure.
    assert better.gain_per_100_tokens.estimate == pytest.approx(4.0)
    assert better.gain_per_100_tokens.low <= 4.0 <= better.gain_per_100_tokens.high
    assert original.gain_per_100_tokens is None
    assert (original.tally.judged, original.delta.estimate) == (0, 0.0)
    assert better.delta.low <= 0.75 <= better.delta.high


def test_the_difference_of_two_systems_is_that_of_their_deltas(judged):
    forth = difference(judged[0], "better", "worse", resamples=200)
    back = difference(judged[0], "worse", "better", resamples=200)
    assert forth.estimate == 0.75 + 0.5 == -back.estimate
    assert difference(judged[0], "better", "better", resamples=200).estimate == 0.0


def test_one_answer_per_prompt_is_needed():
    with pytest.raises(ValueError, match="zip"):
        judge_systems(PROMPTS, {ORIGINAL: ANSWERS[ORIGINAL], "short": [Answer("bad")]}, JUDGE)
