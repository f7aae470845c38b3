"""From the answers of systems to comparisons, and to what a run knows of each system: by hand."""

from __future__ import annotations

import math

import pytest

from pitlm.core.nouns import Answer, Prompt
from pitlm.core.verdicts import Verdict
from pitlm.evaluate.answer_figures import AnswerFigures, answer_figures, item_rows
from pitlm.evaluate.summary import summarise
from pitlm.judge.scores import ScoreJudge
from pitlm.loop.baselines.baseline import ORIGINAL
from pitlm.run.evaluation import against_original
from pitlm.run.judges import run_judge

QUALITY = {"bad": 0.0, "fair": 1.0, "good": 2.0}
JUDGE = ScoreJudge("table", lambda prompts, responses: [QUALITY[y] for y in responses])
PROMPTS = [Prompt.of(name) for name in ("a", "b", "c", "d")]
ANSWERS = {
    ORIGINAL: [Answer("fair"), Answer("fair"), Answer("bad"), Answer("good")],
    "better": [Answer("good", 10, 50), Answer("good", 20, 50), Answer("good", 30, 50), Answer("good", 40, 50)],
    "worse": [Answer("fair"), Answer("bad"), Answer("bad"), Answer("bad")],
}


@pytest.fixture
def rows():
    return run_judge(JUDGE, against_original(PROMPTS, ANSWERS))


def test_every_system_meets_the_original_once_an_item(rows):
    assert [(row.item, row.first, row.second) for row in rows] == [
        (f"0000{item}", system, ORIGINAL) for item in range(4) for system in ("better", "worse")
    ]
    verdicts = {name: [row.verdict for row in rows if row.first == name] for name in ("better", "worse")}
    assert verdicts["better"] == [Verdict.WIN, Verdict.WIN, Verdict.WIN, Verdict.TIE]
    assert verdicts["worse"] == [Verdict.TIE, Verdict.LOSS, Verdict.TIE, Verdict.LOSS]
    assert [row.scores for row in rows if row.first == "worse"] == [(1, 1), (0, 1), (0, 0), (0, 2)]
    assert rows[0].lengths == (4, 4)


def test_what_a_run_knows_of_its_systems():
    known = answer_figures(item_rows(PROMPTS, ANSWERS, len))
    assert list(known) == [ORIGINAL, "better", "worse"]
    assert known["better"] == AnswerFigures(0.25, answer_tokens=4.0, generated_tokens=25.0, prompt_tokens=50.0)
    assert known["worse"] == AnswerFigures(0.5, answer_tokens=3.25, generated_tokens=0.0, prompt_tokens=0.0)
    assert known[ORIGINAL] == AnswerFigures(1.0, answer_tokens=3.75, generated_tokens=0.0, prompt_tokens=0.0)


def test_criteria_and_perplexity_are_means_over_the_answers():
    likelihoods = {"fair": (-2.0, 1), "good": (-1.0, 2), "bad": (0.0, 0)}
    known = answer_figures(
        item_rows(
            PROMPTS,
            ANSWERS,
            len,
            criteria={
                name: [{"short": float(len(answer.text) < 4), "long": 0.0} for answer in own]
                for name, own in ANSWERS.items()
            },
            likelihoods={name: [likelihoods[answer.text] for answer in own] for name, own in ANSWERS.items()},
        )
    )
    assert known[ORIGINAL].criteria == {"short": 0.25, "long": 0.0}
    assert known["worse"].criteria == {"short": 0.75, "long": 0.0}
    # Nats and tokens of two fair answers, a good one and a bad one.
    assert known[ORIGINAL].perplexity == pytest.approx(math.exp(5 / 4))
    assert known["better"].perplexity == pytest.approx(math.exp(1 / 2))


def test_figures_by_hand(rows):
    known = answer_figures(item_rows(PROMPTS, ANSWERS, len))
    summary = summarise(rows, answered=known, resamples=200)
    original, better, worse = summary.by("table")
    assert (better.tally.win, better.tally.tie, better.tally.loss) == (3, 1, 0)
    assert (better.delta.estimate, worse.delta.estimate) == (0.75, -0.5)
    assert better.delta.low <= 0.75 <= better.delta.high
    assert (better.quality.estimate, original.quality.estimate, worse.quality.estimate) == (2.0, 1.0, 0.25)
    # From 1 to 2 on the mean for 25 tokens an item; nothing can be said of what generated nothing.
    assert better.gain_per_100_tokens.estimate == pytest.approx(4.0)
    assert better.gain_per_100_tokens.low <= 4.0 <= better.gain_per_100_tokens.high
    assert original.gain_per_100_tokens is None
    assert worse.gain_per_100_tokens is None
    assert (original.tally.judged, original.answered) == (0, known[ORIGINAL])


def test_one_answer_per_prompt_is_needed():
    with pytest.raises(ValueError, match="zip"):
        against_original(PROMPTS, {ORIGINAL: ANSWERS[ORIGINAL], "short": [Answer("bad")]})
