"""Keeping every text within the lengths that a recipe allows, never silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pitlm.core.nouns import Message, Preference, Prompt
from pitlm.core.recipe import DataSection
from pitlm.data.template import Template, Tokenizer, encode_completion, encode_prompts


def fit_preferences(
    preferences: Sequence[Preference], tokenizer: Tokenizer, template: Template, limits: DataSection
) -> tuple[list[Preference], int]:
    """Drop over-long pairs, or trim their prompts from the oldest turn, as the recipe's limits say.

    A response is never trimmed (its end is part of what is judged), so a pair with an over-long one is dropped.

    Returns:
        The pairs that are left, and how many of them have a trimmed prompt.
    """
    kept: list[Preference] = []
    trimmed = 0
    for pair in preferences:
        if max(len(encode_completion(tokenizer, y)) for y in (pair.chosen, pair.rejected)) > limits.max_response_tokens:
            continue
        prompt = fit_prompt(pair.prompt, tokenizer, template, limits)
        if prompt is None:
            continue
        trimmed += prompt is not pair.prompt
        kept.append(pair if prompt is pair.prompt else replace(pair, prompt=prompt))
    return kept, trimmed


def fit_prompt(prompt: Prompt, tokenizer: Tokenizer, template: Template, limits: DataSection) -> Prompt | None:
    """The prompt, or what is left after trimming whole turns from the oldest; None where nothing fits.

    A system turn stays, and what is left always begins with the user.
    """
    turns = list(prompt.messages)
    system: list[Message] = [turns.pop(0)] if turns[0].role == "system" else []
    while turns:
        candidate = prompt if len(system) + len(turns) == len(prompt.messages) else Prompt((*system, *turns))
        if len(encode_prompts(tokenizer, [template.policy_messages(candidate)])[0]) <= limits.max_prompt_tokens:
            return candidate
        if limits.over_long == "drop":
            return None
        turns = turns[2:]
    return None
