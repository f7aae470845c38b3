"""A house style for short answers, as a team could write it down, with a known truth.

The prompts are short questions of everyday life. The start model itself answers each question twice. A hidden utility
over the plain text of an answer labels the pair. A pair of equal utility gets no label and is left out.

The style: keep to the question; one finished text of 8 to 20 words; no list, markup, heading or quotation; nothing
about oneself and no empty opening; no repetition. An answer that does not name what was asked about is worth nothing,
however well it is written.

The utility reads words, not meaning: an answer that names the thing and is false, or beside the point, can have all
points, and a good answer that calls the thing "it" has none.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml

from pitlm.core.nouns import Message, Preference, Prompt
from pitlm.worlds.world import World, Write, prefer

NOISE = 0.4
"""Temperature of the Bradley-Terry noise, in points."""

TIE = 1e-9
"""Utilities closer than this are equal."""

WORDS = range(8, 21)
"""The length that the style asks for, in words."""

REQUEST = "Answer in one short sentence."
"""The system turn of each prompt. It asks for less than the style does. The start model often does not follow it."""

ENDINGS = {"ies": "y", "ves": "f", "ing": "", "ss": "ss", "us": "us", "es": "", "s": "", "ed": "", "e": ""}
"""Endings of the forms of a word, in the order in which they are tried, and what replaces them."""

SHORTEST = 3
"""The fewest letters that a stem keeps."""

NEW_WORDS, LONG = 4, 4
"""An answer says something new if it has ``NEW_WORDS`` words of ``LONG`` or more letters that the question lacks."""

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
MARKUP = re.compile(r"[*#`\"“”|<>{}\[\]\n]|^\s*[-•]|\b\d+[.)]\s|:$")
ONESELF = re.compile(r"\b(?:I|I'm|I've|I'd|I'll|[Mm]y|[Mm]e|[Mm]yself|[Aa]n AI|[Ll]anguage model)\b(?!\.\w)")
OPENING = re.compile(
    r"^(?:sure|certainly|absolutely|of course|great question|good question|well(?=,)|here (?:is|are)|here's|thank you|"
    r"to answer|the answer|this is a|that's a)\b",
    re.IGNORECASE,
)


class Style(NamedTuple):
    """One number for each criterion of the style: 1 if an answer keeps it, or the points for keeping it."""

    finished: float = 0
    length: float = 0
    plain: float = 0
    impersonal: float = 0
    varied: float = 0
    on_topic: float = 0


WEIGHTS = Style(finished=1.0, length=1.0, plain=0.8, impersonal=0.6, varied=0.6, on_topic=1.0)
"""The points of each criterion in the hidden utility. An answer that is not on topic has utility 0."""


@cache
def _groups() -> list[dict[str, list[str]]]:
    """The things of everyday life and the questions about them, from ``questions.yaml``."""
    found: list[dict[str, list[str]]] = yaml.safe_load((files("pitlm.worlds") / "questions.yaml").read_text("utf-8"))
    return found


@cache
def _asking_words() -> frozenset[str]:
    """The words of all questions without their things, and articles."""
    return frozenset(word for group in _groups() for ask in ("a an the", *group["asks"]) for word in _words(ask))


@cache
def questions() -> tuple[str, ...]:
    """All questions, in the order of their file."""
    return tuple(ask.format(thing) for group in _groups() for thing in group["things"] for ask in group["asks"])


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def topic(question: str) -> list[str]:
    """The words that name the thing in a question; all words of a question that names no thing."""
    words = _words(question)
    return [word for word in words if word not in _asking_words()] or words


def stem(word: str) -> str:
    """A word without the ending of its usual forms, roughly: wolves and wolf, hiking and hike, rains and rain."""
    for ending, other in ENDINGS.items():
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST:
            kept = word.removesuffix(ending) + other
            return kept[:-1] if ending in ("ing", "ed") and kept[-1] == kept[-2] and len(kept) > SHORTEST else kept
    return word


def keeps_to(question: str, answer: str) -> bool:
    """Whether an answer names at least half of the topic, and has ``NEW_WORDS`` long words that the question lacks."""
    asked, told = topic(question), _words(answer)
    stems = {stem(word) for word in told}
    more = {word for word in told if len(word) >= LONG} - set(_words(question))
    return 2 * sum(stem(word) in stems for word in asked) >= len(asked) and len(more) >= NEW_WORDS


def repeats(answer: str) -> bool:
    """Whether three words in a row come twice, or a long word three times."""
    words = _words(answer)
    threes = Counter(zip(words, words[1:], words[2:], strict=False))
    long = Counter(word for word in words if len(word) >= LONG)
    return max(threes.values(), default=0) > 1 or max(long.values(), default=0) > 2


def style(prompt: Prompt, response: str) -> Style:
    """Which criteria an answer keeps."""
    answer = response.strip()
    return Style(
        finished=float(re.search(r"[\w%°)][.!?]$", answer) is not None),
        length=float(len(answer.split()) in WORDS),
        plain=float(bool(answer) and MARKUP.search(answer) is None),
        impersonal=float(bool(answer) and not ONESELF.search(answer) and not OPENING.search(answer)),
        varied=float(bool(answer) and not repeats(answer)),
        on_topic=float(keeps_to(prompt.text, answer)),
    )


def utility(prompt: Prompt, response: str) -> float:
    """The truth, in points: the weights of all kept criteria, or 0 for an answer that is not on topic."""
    kept = style(prompt, response)
    return kept.on_topic * sum(points * value for points, value in zip(WEIGHTS, kept, strict=True))


def make_preferences(count: int, seed: int, write: Write, noise: float | None = None) -> list[Preference]:
    """Labelled pairs of two answers of one model to ``count`` questions; about a quarter of the pairs are ties.

    Each question is asked as often as any other, give or take one.
    """
    rng = random.Random(f"house-style-{seed}")
    asked = questions()
    order: list[str] = []
    while len(order) < count:
        order += rng.sample(asked, k=min(len(asked), count - len(order)))
    prompts = [Prompt.of([Message("system", REQUEST), Message("user", question)]) for question in order]
    return label(rng, prompts, write(prompts, 1), write(prompts, 2), noise or NOISE)


def label(
    rng: random.Random, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], noise: float = NOISE
) -> list[Preference]:
    """Label pairs by the utility, with noise. A labeller who sees no difference gives no label."""
    differences = [utility(x, a) - utility(x, b) for x, a, b in zip(prompts, first, second, strict=True)]
    return [
        prefer(rng, x, a, b, difference, noise=noise)
        for x, a, b, difference in zip(prompts, first, second, differences, strict=True)
        if abs(difference) > TIE
    ]


WORLD = World(
    "the house style",
    lambda x: x.text in questions(),
    utility,
    lambda x, y: style(x, y)._asdict(),
    make_preferences,
    pairs=3_000,
    written=True,
)
