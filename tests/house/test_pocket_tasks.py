"""The instruction tasks: right by the oracle's own marks, for each criterion separately."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from pitlm.core.nouns import Prompt
from pitlm.worlds.pocket import best_utility, draw_request, draw_response, make_preferences, mark, utility

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "slow"))
from pocket_tasks import CRITERIA, GUIDE, draw_lessons, lesson, mend

X = Prompt.of("lamp : color red price nine size small . price color ?")


@pytest.mark.parametrize(
    ("criterion", "response", "found", "mended"),
    [
        ("rude", "silly question . price nine .", "silly question .", "price nine ."),
        ("rude", "price nine .", "", "price nine ."),
        ("wrong", "price twelve . color red .", "price twelve .", "price nine . color red ."),
        ("wrong", "price twelve . color blue .", "price twelve . color blue .", "price nine . color red ."),
        ("missing", "color red .", "price nine .", "color red . price nine ."),
        ("missing", "color blue .", "price nine .", "color blue . price nine ."),  # answered, but wrongly
        ("missing", "", "price nine . color red .", "price nine . color red ."),
        ("padding", "well anyway . size small . price nine .", "well anyway . size small .", "price nine ."),
        ("padding", "happy to help . thanks for asking .", "thanks for asking .", "happy to help ."),
        ("repeated", "price nine . price nine .", "price nine .", "price nine ."),
        ("curt", "price nine .", "happy to help .", "price nine . happy to help ."),
        ("curt", "thanks for asking . price nine .", "", "thanks for asking . price nine ."),
    ],
)
def test_findings_and_mendings_by_hand(criterion, response, found, mended):
    made = lesson(X, response, criterion)
    assert (made.found, made.mended) == (found, mended)


def broken(prompt, response):
    """Return the broken criteria, from the oracle's marks alone."""
    marks, asked = mark(prompt, response), len(prompt.text.removesuffix(" ?").split(" . ")[1].split())
    counts = {
        "wrong": marks.wrong,
        "missing": asked - marks.right - marks.wrong,
        "rude": marks.rude,
        "padding": marks.padding,
        "repeated": marks.repeated,
        "curt": marks.courtesy == 0,
    }
    return {name for name, count in counts.items() if count}


def draws(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        request = draw_request(rng)
        yield request.as_prompt(), draw_response(rng, request)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_finding_is_what_the_marks_say_and_mending_mends_that_alone(criterion):
    for prompt, response in draws(400, seed=1):
        made = lesson(prompt, response, criterion)
        assert bool(made.found) is (criterion in broken(prompt, response))
        assert broken(prompt, made.mended) == broken(prompt, response) - {criterion}
        assert made.found != "" or made.mended == response


def test_all_criteria_together_are_the_whole_utility():
    """Mending in any order reaches the optimum, so a rubric with all criteria is complete."""
    rng = random.Random(2)
    for prompt, response in draws(300, seed=3):
        perfect = mend(prompt, response, rng.sample(CRITERIA, k=len(CRITERIA)))
        assert utility(prompt, perfect) == pytest.approx(best_utility(prompt))


def test_mending_less_is_never_better_than_mending_more():
    for prompt, response in draws(200, seed=4):
        for size in range(len(CRITERIA)):
            fewer, more = (utility(prompt, mend(prompt, response, CRITERIA[:k])) for k in (size, size + 1))
            assert fewer <= more


def test_lessons_take_the_criteria_in_turn_and_half_of_them_find_something():
    lessons = draw_lessons(random.Random(5), make_preferences(300, seed=6), 600)
    assert Counter(made.criterion for made in lessons) == dict.fromkeys(CRITERIA, 100)
    for criterion in CRITERIA:
        found = sum(bool(made.found) for made in lessons if made.criterion == criterion)
        assert 25 < found < 75
    assert all(made == lesson(made.prompt, made.response, made.criterion) for made in lessons)
    assert lessons == draw_lessons(random.Random(5), make_preferences(300, seed=6), 600)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(ValueError, match="found 'nice', expected one of wrong"):
        lesson(X, "price nine .", "nice")


def test_the_prompts_name_the_hidden_criteria():
    assert tuple(GUIDE.rubric) == CRITERIA
    assert GUIDE.apart
    assert GUIDE.satisfied("no")
    assert not GUIDE.satisfied("yes stock none .")
