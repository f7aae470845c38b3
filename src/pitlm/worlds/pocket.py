"""A shop-desk world of about fifty words, with a known truth.

A prompt holds the facts of one item and what the customer asks for. A response is a few short sentences. A hidden
utility makes the preferences, with Bradley-Terry noise. No trained model sees the utility. The utility only labels the
pairs, and judges the answers at the end.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from pitlm.core.nouns import Preference, Prompt
from pitlm.worlds.world import World, prefer

_WORDS: dict[str, Any] = yaml.safe_load((files("pitlm.worlds") / "pocket.yaml").read_text("utf-8"))
ITEMS, RUDE, PADDING, COURTESY = (tuple(_WORDS[name]) for name in ("items", "rude", "padding", "courtesy"))
FACTS: dict[str, tuple[str, ...]] = {attribute: tuple(values) for attribute, values in _WORDS["facts"].items()}
ASK = "better"

NOISE = 0.4
"""Temperature of the Bradley-Terry noise, in points."""


class Marks(NamedTuple):
    """One number for each kind of sentence: a count of sentences, or the points that each adds to the utility."""

    right: float = 0
    wrong: float = 0
    rude: float = 0
    padding: float = 0
    repeated: float = 0
    courtesy: float = 0


WEIGHTS = Marks(right=1.0, wrong=-1.0, rude=-1.0, padding=-0.5, repeated=-0.5, courtesy=0.5)
"""The points that one sentence of each kind adds to the hidden utility."""


@dataclass(frozen=True, slots=True)
class ShopRequest:
    """The parsed x: an item, its facts, and the attributes that are asked for."""

    item: str
    facts: dict[str, str]
    asked: tuple[str, ...]

    def as_prompt(self) -> Prompt:
        facts = " ".join(f"{attribute} {value}" for attribute, value in self.facts.items())
        return Prompt.of(f"{self.item} : {facts} . {' '.join(self.asked)} ?")

    @classmethod
    def parse(cls, prompt: Prompt) -> ShopRequest:
        told, asked = prompt.text.removesuffix("?").split(" . ")
        item, facts = told.split(" : ")
        words = facts.split()
        return cls(item, dict(zip(words[::2], words[1::2], strict=True)), tuple(asked.split()))


def asks(prompt: Prompt) -> bool:
    """Whether a prompt belongs to this world."""
    try:
        request = ShopRequest.parse(prompt)
    except ValueError:
        return False
    return request.facts.keys() >= set(request.asked)


def kinds(request: ShopRequest, response: str) -> list[tuple[str, str]]:
    """Each sentence of a response, with the name of its kind in :class:`Marks`.

    An unknown sentence and a second courtesy count as padding.
    """
    told: list[tuple[str, str]] = []
    seen: set[str] = set()
    for sentence in filter(None, (part.strip() for part in response.split("."))):
        subject, *rest = sentence.split()
        if sentence in RUDE:
            kind = "rude"
        elif sentence in COURTESY:
            kind = "padding" if "courtesy" in seen else "courtesy"
            seen.add("courtesy")
        elif len(rest) == 1 and subject in request.asked:
            kind = "repeated" if subject in seen else "right" if rest[0] == request.facts[subject] else "wrong"
            seen.add(subject)
        else:
            kind = "padding"
        told.append((sentence, kind))
    return told


def mark(prompt: Prompt, response: str) -> Marks:
    """How many sentences of each kind a response has."""
    return Marks(**Counter(kind for _, kind in kinds(ShopRequest.parse(prompt), response)))


def utility(prompt: Prompt, response: str) -> float:
    """The true utility of a response, in points: the weighted sum of its marks."""
    return sum((points * count for points, count in zip(WEIGHTS, mark(prompt, response), strict=True)), 0.0)


def written(sentences: Sequence[str]) -> str:
    """Sentences as one text, each with its full stop."""
    return " ".join(f"{sentence} ." for sentence in sentences)


def best_utility(prompt: Prompt) -> float:
    """The utility of a perfect response."""
    return WEIGHTS.right * len(ShopRequest.parse(prompt).asked) + WEIGHTS.courtesy


def draw_request(rng: random.Random) -> ShopRequest:
    facts = {attribute: rng.choice(values) for attribute, values in FACTS.items()}
    shown = rng.sample(sorted(facts), k=3)
    asked = rng.sample(shown, k=rng.choice((1, 2)))
    return ShopRequest(rng.choice(ITEMS), {attribute: facts[attribute] for attribute in shown}, tuple(asked))


def draw_response(rng: random.Random, request: ShopRequest) -> str:
    """Write as a shop clerk does: an opening, the facts, a closing, and sometimes a sentence out of place.

    More than a third of the winners have a rude opening, and about half have a padded closing. So a model that imitates
    winners keeps these faults. Only the direction of preference shows that an answer without them is better.
    """
    sentences: list[str] = []
    for attribute in request.asked:
        if rng.random() < 0.2:
            continue
        others = [value for value in FACTS[attribute] if value != request.facts[attribute]]
        value = rng.choice(others) if rng.random() < 0.1 else request.facts[attribute]
        sentences.extend([f"{attribute} {value}"] * (2 if rng.random() < 0.2 else 1))
    opening = rng.choices((RUDE, COURTESY, ()), (0.55, 0.3, 0.15))[0]
    closing = rng.choices((PADDING, ()), (0.55, 0.45))[0]
    stray = rng.choices((RUDE, PADDING, COURTESY, ()), (0.05, 0.05, 0.05, 0.85))[0]
    if opening:
        sentences.insert(0, rng.choice(opening))
    if closing:
        sentences.append(rng.choice(closing))
    if stray:
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(stray))
    return written(sentences or [rng.choice(PADDING)])


def make_preferences(count: int, seed: int, noise: float | None = None) -> list[Preference]:
    """``count`` labelled pairs; the two responses of a pair always differ."""
    rng = random.Random(f"pocket-{seed}")
    pairs: list[Preference] = []
    while len(pairs) < count:
        request = draw_request(rng)
        first, second = draw_response(rng, request), draw_response(rng, request)
        if first != second:
            prompt = request.as_prompt()
            difference = utility(prompt, first) - utility(prompt, second)
            pairs.append(prefer(rng, prompt, first, second, difference, noise=noise or NOISE))
    return pairs


def vocabulary() -> Sequence[str]:
    """Every word of the world."""
    phrases = (*ITEMS, *FACTS, *(v for values in FACTS.values() for v in values), *RUDE, *PADDING, *COURTESY, ASK)
    return sorted({word for phrase in phrases for word in phrase.split()} | {".", ":", "?"})


WORLD = World(
    "the pocket world",
    asks,
    utility,
    lambda x, y: mark(x, y)._asdict(),
    lambda count, seed, write, noise: make_preferences(count, seed, noise),
    24_000,
    vocabulary(),
)
