"""Keeping every text within the lengths that a recipe allows, never silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pitlm.core.nouns import Message, Preference, Prompt
from pitlm.data.template import Template, Tokenizer, encode_completion, encode_prompts

OverLong = Literal["drop", "trim"]


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """Longest prompt x and longest response y, in tokens; the response's end token counts."""

    prompt_tokens: int
    response_tokens: int
    over_long: OverLong = "drop"


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is left, and how many pairs were dropped or trimmed to get there."""

    preferences: list[Preference]
    dropped: int
    trimmed: int


def fit_preferences(
    preferences: Sequence[Preference], tokenizer: Tokenizer, template: Template, limits: LengthLimits
) -> Fitted:
    """Drop over-long pairs, or trim their prompts from the oldest turn, as the limits say.

    A response is never trimmed (its end is part of what is judged), so a pair with an over-long one is dropped.
    """
    kept: list[Preference] = []
    trimmed = 0
    for pair in preferences:
        if max(len(encode_completion(tokenizer, y)) for y in (pair.chosen, pair.rejected)) > limits.response_tokens:
            continue
        prompt = fit_prompt(pair.prompt, tokenizer, template, limits)
        if prompt is None:
            continue
        trimmed += prompt is not pair.prompt
        kept.append(pair if prompt is pair.prompt else replace(pair, prompt=prompt))
    return Fitted(kept, len(preferences) - len(kept), trimmed)


def fit_prompt(prompt: Prompt, tokenizer: Tokenizer, template: Template, limits: LengthLimits) -> Prompt | None:
    """The prompt, or what is left after trimming whole turns from the oldest; None where nothing fits.

    A system turn stays, and what is left always begins with the user.
    """
    turns = list(prompt.messages)
    system: list[Message] = [turns.pop(0)] if turns[0].role == "system" else []
    while turns:
        candidate = prompt if len(system) + len(turns) == len(prompt.messages) else Prompt((*system, *turns))
        if len(encode_prompts(tokenizer, [template.policy_messages(candidate)])[0]) <= limits.prompt_tokens:
            return candidate
        if limits.over_long == "drop":
            return None
        turns = turns[2:]
    return None
