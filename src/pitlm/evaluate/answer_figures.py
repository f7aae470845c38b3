"""The answers of the systems of a run: the rows of ``items.jsonl``, and the figures of each system in them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pitlm.core.nouns import Answer, Prompt
from pitlm.loop.baselines.baseline import ORIGINAL

Measures = Mapping[str, Sequence[Any]]
"""One value for each answer of a system, by the system's name."""


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """Figures of one system's answers in a run; means over items.

    Attributes:
        copy_rate: share of the answers that equal the original answers of the run.
        answer_tokens: length of an answer.
        generated_tokens, prompt_tokens: tokens that the system generated and read for one item.
        criteria: the parts of a known truth, by name.
        perplexity: of all answers under the model that the run started from, without end tokens; None if that model
            was not pretrained, or if all answers are empty.
    """

    copy_rate: float
    answer_tokens: float
    generated_tokens: float
    prompt_tokens: float
    criteria: Mapping[str, float] = field(default_factory=dict)
    perplexity: float | None = None


def item_rows(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]], length: Callable[[str], int], **more: Measures
) -> list[dict[str, Any]]:
    """Each prompt with the answer of every system, and three counts of tokens for each: length, generated, read.

    Args:
        more: further measures of the answers of each system, by their keys in the row.
    """
    return [
        {
            "item": f"{item:05d}",
            "prompt": prompt.as_messages(),
            "answers": {name: own[item].text for name, own in answers.items()},
            "tokens": {
                name: [length(given[item].text), given[item].generated_tokens, given[item].prompt_tokens]
                for name, given in answers.items()
            },
            **{key: {name: own[item] for name, own in systems.items()} for key, systems in more.items()},
        }
        for item, prompt in enumerate(prompts)
    ]


def answer_figures(items: Sequence[Mapping[str, Any]]) -> dict[str, AnswerFigures]:
    """The figures of each system in the rows of ``items.jsonl``, in the order of the answers in a row."""
    found = {}
    for name in items[0]["answers"]:
        copies = [item["answers"][name] == item["answers"][ORIGINAL] for item in items]
        length, generated, read = np.mean([item["tokens"][name] for item in items], axis=0).tolist()
        kept = [item["criteria"][name] for item in items if "criteria" in item]
        told = np.sum([item["likelihoods"][name] for item in items if "likelihoods" in item] or [[0, 0]], axis=0)
        criteria = {criterion: float(np.mean([own[criterion] for own in kept])) for criterion in (kept or [{}])[0]}
        perplexity = math.exp(-told[0] / told[1]) if told[1] else None
        found[name] = AnswerFigures(float(np.mean(copies)), length, generated, read, criteria, perplexity)
    return found
