"""Lengths: which pairs are dropped or trimmed, and that both are counted."""

from __future__ import annotations

import pytest
from builders import ASK

from pitlm.core.nouns import Preference, Prompt
from pitlm.core.recipe import DataSection
from pitlm.data.lengths import fit_preferences, fit_prompt
from pitlm.data.template import Template
from pitlm.models.loading import load_tokenizer

TEMPLATE = Template(ASK)
SYSTEM = {"role": "system", "content": "a shop clerk"}


@pytest.fixture(scope="module")
def tokenizer(bases):
    return load_tokenizer(bases("words"))


def limits(prompt: int, response: int, over_long: str = "drop") -> DataSection:
    return DataSection(max_prompt_tokens=prompt, max_response_tokens=response, over_long=over_long)


def talk(turns: int, system: bool = True) -> Prompt:
    """``turns`` user turns of 3 words, with 2-word answers between them. Each turn costs its words and a mark."""
    messages = [SYSTEM] if system else []
    for number in range(turns):
        messages.append({"role": "user", "content": f"is it u{number}"})
        if number < turns - 1:
            messages.append({"role": "assistant", "content": f"the a{number}"})
    return Prompt.of(messages)


# In tokens: system 3 + 1; user 3 + 1; assistant 2 + 1; the mark before the answer 1.
def length(turns: int, system: bool = True) -> int:
    return 4 * system + 4 * turns + 3 * (turns - 1) + 1


@pytest.mark.parametrize("system", [True, False])
def test_trimming_takes_the_oldest_turns_and_keeps_the_system_turn(tokenizer, system):
    prompt = talk(4, system)
    for room in (4, 3, 2, 1):
        fitted = fit_prompt(prompt, tokenizer, TEMPLATE, limits(length(room, system), 9, "trim"))
        expected = prompt.messages[:system] + prompt.messages[len(prompt.messages) - (2 * room - 1) :]
        assert fitted.messages == expected
        assert fitted.messages[system].role == "user"
        # With one token less, one more exchange has to go.
        tighter = fit_prompt(prompt, tokenizer, TEMPLATE, limits(length(room, system) - 1, 9, "trim"))
        assert tighter is None if room == 1 else len(tighter.messages) == len(fitted.messages) - 2


def test_a_prompt_that_fits_is_the_same_object(tokenizer):
    prompt = talk(2)
    assert fit_prompt(prompt, tokenizer, TEMPLATE, limits(length(2), 9, "drop")) is prompt
    assert fit_prompt(prompt, tokenizer, TEMPLATE, limits(length(2), 9, "trim")) is prompt


def test_dropping_does_not_trim(tokenizer):
    assert fit_prompt(talk(2), tokenizer, TEMPLATE, limits(length(2) - 1, 9, "drop")) is None


def pair(turns: int = 1, chosen: str = "the price", rejected: str = "the lamp") -> Preference:
    return Preference(talk(turns), chosen, rejected)


def test_what_is_dropped_and_trimmed_is_counted(tokenizer):
    long = "it is the red lamp"  # 5 words and the end token
    pairs = [pair(), pair(3), pair(chosen=long), pair(rejected=long), pair(2, chosen=long), pair(2)]
    kept, trimmed = fit_preferences(pairs, tokenizer, TEMPLATE, limits(length(2), 5, "drop"))
    assert (kept, trimmed) == ([pairs[0], pairs[5]], 0)
    kept, trimmed = fit_preferences(pairs, tokenizer, TEMPLATE, limits(length(2), 6, "trim"))
    assert (len(kept), trimmed) == (len(pairs), 1)
    assert kept[1].prompt.messages == (talk(3).messages[0], *talk(3).messages[-3:])
    assert [p.chosen for p in kept] == [p.chosen for p in pairs]
    assert [p for p in kept if p is not kept[1]] == [p for p in pairs if p is not pairs[1]]


def test_the_end_token_counts(tokenizer):
    three_words = pair(chosen="the red lamp")
    assert fit_preferences([three_words], tokenizer, TEMPLATE, limits(50, 3)) == ([], 0)
    assert fit_preferences([three_words], tokenizer, TEMPLATE, limits(50, 4)) == ([three_words], 0)
