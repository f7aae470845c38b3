"""A local chat model: any checkpoint with a chat template answers any conversation."""

from __future__ import annotations

import pytest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.loop.baselines.guide import Guide
from pitlm.loop.baselines.self_refine import self_refine
from pitlm.models.chat import LocalChat

TURNS = [{"role": "user", "content": "is it small ?"}]


@pytest.mark.parametrize("family", ["words", "llama3", "qwen3", "gpt"])
def test_it_needs_no_card_and_counts_its_tokens(family, bases):
    chat = LocalChat.from_pretrained(bases(family), max_new_tokens=5)
    (reply,) = chat.complete([TURNS], temperature=0.0, seed=0)
    shown = chat.tokenizer.apply_chat_template(
        TURNS, add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
    )
    assert reply.prompt_tokens == len(shown["input_ids"])
    assert 1 <= reply.generated_tokens <= 5
    assert chat.complete([TURNS], temperature=0.0, seed=1) == [reply]
    assert chat.complete([], temperature=0.0, seed=1) == []


def test_self_refine_runs_on_it(bases):
    chat = LocalChat.from_pretrained(bases("words"), max_new_tokens=4)
    guide = Guide(rubric={"nice": "nice"}, feedback="is it {rubric} ?", refine="better .", done="never said")
    (trace,) = self_refine([Prompt.of("price ?")], ["nine"], chat=chat, guide=guide, rounds=2, best=True)
    assert len(trace.rounds) == 2
    assert 5 <= trace.generated_tokens <= 5 * 4  # three times feedback, two rewrites
    assert trace.prompt_tokens > trace.generated_tokens


def test_a_conversation_that_does_not_fit_is_refused(bases):
    chat = LocalChat.from_pretrained(bases("words"), max_new_tokens=5)
    with pytest.raises(InputError, match=r"found a conversation of 30\d tokens, expected at most 251"):
        chat.complete([[{"role": "user", "content": "it " * 300}]], temperature=0.0, seed=0)
