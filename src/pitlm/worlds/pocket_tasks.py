"""Small instruction tasks of the pocket world: find the sentences that break one criterion, and mend them.

A model has to learn these tasks before it can follow a rubric (Self-Refine). Each criterion of the hidden utility has a
name, a true finding and a true mending, by the world's own marks. A file of prompts turns these facts into words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pitlm.core.nouns import Preference, Prompt
from pitlm.worlds.pocket import COURTESY, ShopRequest, kinds

CRITERIA = ("wrong", "missing", "rude", "padding", "repeated", "curt")
"""The criteria of the utility, each named after its fault. ``curt`` is an answer without courtesy."""

MENDED_BEFORE = 0.3
"""Chance that each other criterion is mended before a lesson, as earlier rewrites would have done."""

TRIES = 30


@dataclass(frozen=True, slots=True)
class Lesson:
    """One criterion and one response: the sentences that break or would mend the criterion, and the mended response.

    Attributes:
        found: the sentences, or an empty text where the criterion holds; ``mended`` is then the response itself.
    """

    prompt: Prompt
    response: str
    criterion: str
    found: str
    mended: str


def lesson(prompt: Prompt, response: str, criterion: str) -> Lesson:
    """The truth about one criterion.

    Raises:
        ValueError: no such criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: found '{criterion}', expected one of {', '.join(CRITERIA)}")
    request = ShopRequest.parse(prompt)
    told = kinds(request, response)
    if criterion in ("missing", "curt"):
        found = _missing(request, told) if criterion == "missing" else _curt(told)
        mended = [*(sentence for sentence, _ in told), *found]
    else:
        broken = _broken(told, criterion)
        found = [told[index][0] for index in sorted(broken)]
        kept = [index for index in range(len(told)) if criterion == "wrong" or index not in broken]
        mended = [_right(request, told[index][0]) if index in broken else told[index][0] for index in kept]
    return Lesson(prompt, response, criterion, _text(found), _text(mended) if found else response)


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
            made = _draw(rng, rng.choice(pairs), criterion)
            if bool(made.found) is wanted:
                break
        lessons.append(made)
    return lessons


def _draw(rng: random.Random, pair: Preference, criterion: str) -> Lesson:
    before = [other for other in CRITERIA if other != criterion and rng.random() < MENDED_BEFORE]
    response = mend(pair.prompt, rng.choice((pair.chosen, pair.rejected)), rng.sample(before, k=len(before)))
    return lesson(pair.prompt, response, criterion)


def _missing(request: ShopRequest, told: Sequence[tuple[str, str]]) -> list[str]:
    answered = {sentence.split()[0] for sentence, kind in told if kind in ("right", "wrong")}
    return [f"{attribute} {request.facts[attribute]}" for attribute in request.asked if attribute not in answered]


def _curt(told: Sequence[tuple[str, str]]) -> list[str]:
    return [] if any(kind == "courtesy" for _, kind in told) else [COURTESY[0]]


def _broken(told: Sequence[tuple[str, str]], criterion: str) -> set[int]:
    """Positions of the sentences that break the criterion; a second courtesy is padding, as in the utility."""
    found = {index for index, (_, kind) in enumerate(told) if kind == criterion}
    if criterion == "padding":
        found |= set([index for index, (_, kind) in enumerate(told) if kind == "courtesy"][1:])
    return found


def _right(request: ShopRequest, sentence: str) -> str:
    attribute = sentence.split()[0]
    return f"{attribute} {request.facts[attribute]}"


def _text(sentences: Sequence[str]) -> str:
    return " ".join(f"{sentence} ." for sentence in sentences)
