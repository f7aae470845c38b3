"""The house style: what each criterion accepts, by hand; what labels the pairs."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from pitlm.core.nouns import Prompt
from pitlm.core.recipe import WORLDS
from pitlm.plan.sizes import WORLDS as LENGTHS
from pitlm.worlds import house_style
from pitlm.worlds.house_style import (
    NOISE,
    WEIGHTS,
    Style,
    keeps_to,
    label,
    make_preferences,
    questions,
    repeats,
    style,
    topic,
    utility,
)
from pitlm.worlds.known import KNOWN

QUESTION = "How do I clean a cast iron pan?"
X = Prompt.of(QUESTION)
GOOD = "Scrub the cast iron pan with coarse salt, rinse it, and dry it on a warm stove."
FULL = sum(WEIGHTS)


def broken(response: str) -> set[str]:
    return {name for name, value in style(X, response)._asdict().items() if not value}


def test_a_good_answer_keeps_every_criterion():
    assert style(X, GOOD) == Style(1, 1, 1, 1, 1, 1)
    assert utility(X, GOOD) == pytest.approx(FULL)


@pytest.mark.parametrize(
    ("response", "criteria"),
    [
        (GOOD.rstrip("."), {"finished"}),
        (GOOD.rstrip(".") + "...", {"finished"}),
        ("Scrub the cast iron pan with salt afterwards.", set()),  # eight words
        ("Scrub the iron pan using coarse salt.", {"length"}),  # seven words
        (GOOD.rstrip(".") + ", then rub a thin layer of oil into it.", {"length"}),
        (GOOD.rstrip(".") + ":", {"plain", "finished"}),
        ("1. " + GOOD, {"plain"}),
        ("- " + GOOD, {"plain"}),
        (GOOD.replace("salt", "**salt**"), {"plain"}),
        (GOOD.replace("salt", '"salt"'), {"plain"}),
        (GOOD.replace(", rinse", ",\nrinse"), {"plain"}),
        ("I scrub the cast iron pan with coarse salt, rinse it, and dry it.", {"impersonal"}),
        ("As an AI, scrub the cast iron pan with coarse salt and rinse it.", {"impersonal"}),
        ("Well, scrub the cast iron pan with coarse salt, rinse it, and dry it.", {"impersonal"}),
        ("Well water and coarse salt will clean the cast iron pan, i.e. scrub it.", set()),
        ("Salt acts as an abrasive: scrub the cast iron pan until it is clean by 95%.", set()),
        ("Sure, scrub the cast iron pan with coarse salt, rinse it, and dry it.", {"impersonal"}),
        ("Scrub the cast iron pan, and then scrub the cast iron pan with coarse salt.", {"varied"}),
        ("Salt cleans a cast iron pan, because salt is coarse and salt dries it.", {"varied"}),
        ("Use warm water and a little soap, then dry everything on the stove.", {"on_topic"}),
        ("How do I clean a cast iron pan, and how do I clean it?", {"varied", "impersonal", "on_topic"}),
        ("", {"finished", "length", "plain", "impersonal", "varied", "on_topic"}),
    ],
)
def test_each_fault_breaks_its_criterion(response, criteria):
    assert broken(response) == criteria
    kept = sum(points for name, points in WEIGHTS._asdict().items() if name not in criteria)
    assert utility(X, response) == pytest.approx(0 if "on_topic" in criteria else kept)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (QUESTION, ["cast", "iron", "pan"]),
        ("Why do the leaves of an apple tree turn yellow?", ["apple", "tree"]),
        ("What is a bank transfer?", ["bank", "transfer"]),
        ("What causes wind?", ["wind"]),
    ],
)
def test_topic_is_the_thing_asked_about(question, words):
    assert topic(question) == words


@pytest.mark.parametrize(
    ("question", "answer", "kept"),
    [
        ("How do I cook tomato soup?", "Tomatoes simmer slowly with onions until everything falls apart.", True),
        ("What do owls eat?", "An owl eats mostly mice, voles and large insects at night.", True),
        ("What do owls eat?", "It depends on many things that people should always consider.", False),
        ("What do owls eat?", "Owls eat what owls eat.", False),
        ("What do wolves eat?", "A wolf eats mostly deer, moose and smaller animals.", True),
        ("Why do people enjoy hiking?", "People hike because fresh forest air makes them calm.", True),
        ("How do I clean an oven?", "Start every morning with an easy walk through quiet green parks.", False),
        ("How does a compass work?", "The company sells useful products that customers enjoy.", False),
        ("What do butterflies eat?", "Fresh butter tastes wonderful with warm country bread.", False),
    ],
)
def test_an_answer_on_topic_names_the_thing_and_says_more(question, answer, kept):
    assert keeps_to(question, answer) is kept


def test_no_asking_word_is_the_topic_of_a_question():
    asked = questions()
    assert len(asked) == len(set(asked)) > 1_500
    asking = {"what", "how", "the", "an", "do", "cook", "clean"}
    assert not [question for question in asked if asking & set(topic(question))]
    assert all(question[0].isupper() and question.endswith("?") for question in asked)


def test_three_words_in_a_row_that_come_twice_are_a_repetition():
    assert not repeats("One two three four five six seven.")
    assert repeats("one two three, one two three")


@given(st.text(max_size=200))
def test_utility_is_bounded_and_off_topic_is_worthless(response):
    points = utility(X, response)
    assert 0 <= points <= FULL
    assert points == 0 or style(X, response).on_topic


def test_labels_follow_bradley_terry():
    count, worse = 4_000, GOOD.rstrip(".") + "..."
    pairs = label(random.Random(1), [X] * count, [GOOD] * count, [worse] * count)
    chance = 1 / (1 + math.exp(-WEIGHTS.finished / NOISE))
    low, high = binom.interval(0.9999, count, chance)
    assert low <= sum(pair.chosen == GOOD for pair in pairs) <= high


def test_a_pair_that_is_equally_good_gets_no_label():
    other = GOOD.replace("coarse", "fine")
    assert utility(X, GOOD) == utility(X, other)
    assert label(random.Random(0), [X] * 3, [GOOD, GOOD, ""], [other, GOOD, "Sure."]) == []


def test_the_start_model_answers_every_question_about_equally_often():
    asked: dict[int, list[Prompt]] = {}

    def write(prompts, seed):
        asked[seed] = list(prompts)
        more = "is something that many people learn about every summer."
        return [f"{prompt.text} {more}" if seed == 2 and number else "No." for number, prompt in enumerate(prompts)]

    pairs = make_preferences(2_000, 0, write)
    assert asked[1] == asked[2]
    assert len(pairs) == 1_999  # the first two answers are equally good
    counts = [asked[1].count(prompt) for prompt in set(asked[1])]
    assert set(counts) == {1, 2}
    assert len(counts) == len(questions())
    assert make_preferences(2_000, 0, write) == pairs
    assert make_preferences(2_000, 1, write) != pairs


def test_prompts_ask_for_less_than_the_style():
    asked: list[Prompt] = []
    make_preferences(1, 0, lambda prompts, seed: asked.extend(prompts) or [""] * len(prompts))
    [prompt] = set(asked)
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert prompt.text in house_style.questions()


def test_every_place_knows_the_same_worlds():
    """The recipe and the planner do not import the worlds, so they have the names of their own."""
    assert tuple(KNOWN) == WORLDS == tuple(LENGTHS)
