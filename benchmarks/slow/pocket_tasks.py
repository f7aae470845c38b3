"""Small instruction tasks of the pocket world: find the sentences that break one criterion, and mend them.

A model has to learn these tasks before it can follow a rubric (Self-Refine). For each criterion of the hidden utility
this module finds the faulty sentences and mends them by the true marks. ``pocket.yaml`` puts the tasks into words.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pitlm.core.nouns import Preference, Prompt
from pitlm.loop.baselines.guide import Guide
from pitlm.worlds.pocket import COURTESY, ShopRequest, kinds, written

CRITERIA = ("wrong", "missing", "rude", "padding", "repeated", "curt")
"""The criteria of the utility, each named after its fault. ``curt`` is an answer without courtesy."""

MENDED_BEFORE = 0.3
"""Probability that a response is mended by each other criterion before a lesson, as earlier rewrites would do."""

TRIES = 30

GUIDE = Guide.load(Path(__file__).with_name("pocket.yaml"))


@dataclass(frozen=True, slots=True)
class Lesson:
    """One criterion and one response, with the sentences to remove or to add, and the mended response.

    Attributes:
        found: the sentences that break the criterion, or that the response lacks. If the response meets the criterion,
            ``found`` is empty and ``mended`` is the response itself.
    """

    prompt: Prompt
    response: str
    criterion: str
    found: str
    mended: str


def lesson(prompt: Prompt, response: str, criterion: str) -> Lesson:
    """The lesson on one criterion of one response, from the true marks.

    Raises:
        ValueError: no such criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: found '{criterion}', expected one of {', '.join(CRITERIA)}")
    request = ShopRequest.parse(prompt)
    told = kinds(request, response)
    right = {attribute: f"{attribute} {request.facts[attribute]}" for attribute in request.asked}
    found = [sentence for sentence, kind in told if kind == criterion]
    mended = [sentence for sentence, kind in told if kind != criterion]
    if criterion == "wrong":
        mended = [right[sentence.split()[0]] if kind == "wrong" else sentence for sentence, kind in told]
    elif criterion == "missing":
        answered = {sentence.split()[0] for sentence, kind in told if kind in ("right", "wrong")}
        found = [sentence for attribute, sentence in right.items() if attribute not in answered]
        mended += found
    elif criterion == "curt":
        found = [] if any(kind == "courtesy" for _, kind in told) else [COURTESY[0]]
        mended += found
    return Lesson(prompt, response, criterion, written(found), written(mended) if found else response)


def mend(prompt: Prompt, response: str, criteria: Sequence[str]) -> str:
    """The response with each of these criteria mended in turn."""
    for criterion in criteria:
        response = lesson(prompt, response, criterion).mended
    return response


def draw_lessons(rng: random.Random, pairs: Sequence[Preference], count: int) -> list[Lesson]:
    """Draw ``count`` lessons on responses of the pairs: each criterion equally often, about half with a finding."""
    lessons = []
    for number in range(count):
        criterion = CRITERIA[number % len(CRITERIA)]
        wanted = rng.random() < 0.5
        for _ in range(TRIES):
            pair = rng.choice(pairs)
            before = [other for other in CRITERIA if other != criterion and rng.random() < MENDED_BEFORE]
            response = rng.choice((pair.chosen, pair.rejected))
            response = mend(pair.prompt, response, rng.sample(before, k=len(before)))
            made = lesson(pair.prompt, response, criterion)
            if bool(made.found) is wanted:
                break
        lessons.append(made)
    return lessons
