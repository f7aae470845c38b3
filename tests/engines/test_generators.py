"""Sampling: reproducible, independent of padding and batch size, correct about the end token."""

from __future__ import annotations

import pytest
import torch
from builders import ASK, generator_checkpoint

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.data.template import encode_prompts
from pitlm.engines.generators import Improver, Policy, generate
from pitlm.models.loading import load_model, load_tokenizer

PROMPTS = [
    Prompt.of(text)
    for text in ("what is the price of the red lamp ?", "is it small ?", "price ?", "what is it ? is it small ?")
]
FAMILIES = ("words", "llama3", "qwen3", "gpt")


@pytest.fixture(params=FAMILIES)
def loaded(request, bases):
    tokenizer = load_tokenizer(bases(request.param))
    model = load_model(bases(request.param), tokenizer)
    prompts = encode_prompts(tokenizer, [prompt.as_messages() for prompt in PROMPTS])
    return model, tokenizer, prompts


def run(loaded, prompts=None, **kwargs):
    model, tokenizer, own = loaded
    return generate(
        model,
        tokenizer,
        own if prompts is None else prompts,
        **{"max_new_tokens": 8, "temperature": 1.0, "seed": 0, **kwargs},
    )


def by_hand(loaded, prompt, count):
    """Generate greedily, one token at a time, reading the whole row each time."""
    model, tokenizer, _ = loaded
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids[len(prompt) :]


def test_same_seed_same_answers(loaded):
    assert run(loaded, seed=3) == run(loaded, seed=3)
    assert run(loaded, seed=3) != run(loaded, seed=4)


def test_the_seed_alone_decides_and_the_callers_stream_goes_on(loaded):
    torch.manual_seed(11)
    first = run(loaded)
    after = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(12)
    assert run(loaded) == first


def test_greedy_output_is_that_of_the_bare_model_whatever_the_padding(loaded):
    greedy = run(loaded, temperature=0.0)
    assert len({len(prompt) for prompt in loaded[2]}) > 1
    assert greedy == [by_hand(loaded, prompt, 8) for prompt in loaded[2]]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_does_not_change_greedy_output(loaded, batch_size):
    assert run(loaded, temperature=0.0, batch_size=batch_size) == run(loaded, temperature=0.0)


def test_answers_come_in_the_order_of_their_prompts(loaded):
    forth = run(loaded, temperature=0.0)
    assert run(loaded, prompts=loaded[2][::-1], temperature=0.0) == forth[::-1]


def test_temperature_zero_ignores_the_seed(loaded):
    assert run(loaded, temperature=0.0, seed=1) == run(loaded, temperature=0.0, seed=2)


def test_an_answer_stops_at_its_end_token_and_keeps_it(loaded):
    _, tokenizer, _ = loaded
    long = run(loaded, max_new_tokens=40, temperature=3.0, prompts=loaded[2] * 32)
    end = tokenizer.eos_token_id
    ended = [ids for ids in long if end in ids]
    assert ended, "no sample ended: the test needs more samples"
    assert all(ids.index(end) == len(ids) - 1 for ids in ended)
    assert all(len(ids) == 40 for ids in long if end not in ids)


def test_sampling_follows_the_models_own_distribution(loaded):
    """The first token's frequencies match the softmax: no top-k, no top-p, none of the base's settings."""
    model, _, prompts = loaded
    count, temperature = 3000, 0.7
    with torch.no_grad():
        chances = torch.softmax(model(input_ids=torch.tensor([prompts[1]])).logits[0, -1] / temperature, -1)
    drawn = run(loaded, prompts=[prompts[1]] * count, max_new_tokens=1, temperature=temperature, batch_size=count)
    observed = torch.bincount(torch.tensor([ids[0] if ids else 0 for ids in drawn]), minlength=len(chances)).float()
    expected = chances * count
    # Chi-square over the whole vocabulary: the mean is the degrees of freedom, the variance twice that.
    degrees = len(chances) - 1
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    assert statistic < degrees + 6 * (2 * degrees) ** 0.5


def test_the_model_stays_in_its_mode(loaded):
    loaded[0].train()
    run(loaded)
    assert loaded[0].training
    loaded[0].eval()


def test_no_prompts_no_answers(loaded):
    assert run(loaded, prompts=[]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_and_improver_differ_only_in_what_they_are_shown(bases, tmp_path, family):
    policy = Policy.from_pretrained(generator_checkpoint(bases(family), tmp_path / "policy", "policy"))
    improver = Improver.from_pretrained(generator_checkpoint(bases(family), tmp_path / "improver", "improver"))
    references = ["silly question ."] * len(PROMPTS)
    talk = [
        Prompt.of([*x.as_messages(), {"role": "assistant", "content": y}, {"role": "user", "content": ASK}])
        for x, y in zip(PROMPTS, references, strict=True)
    ]
    proposals = improver.propose(PROMPTS, references, temperature=0.0)
    assert proposals == policy.answer(talk, temperature=0.0)
    assert all(0 < answer.generated_tokens <= 8 for answer in proposals)
    lengths = [len(ids) for ids in encode_prompts(policy.tokenizer, [x.as_messages() for x in talk])]
    assert [answer.prompt_tokens for answer in proposals] == lengths
    special = set(policy.tokenizer.all_special_tokens)
    assert not any(token in answer.text for answer in proposals for token in special)


def test_a_conversation_beyond_the_window_is_refused(bases, tmp_path):
    policy = Policy.from_pretrained(generator_checkpoint(bases("words"), tmp_path / "policy", "policy"))
    fits = Prompt.of("price " * (256 - 8 - 2))  # the user's and the assistant's mark, 8 for the answer
    assert len(policy.answer([fits])) == 1
    with pytest.raises(InputError, match="found a conversation of 249 tokens, expected at most 248"):
        policy.answer([Prompt.of("price " * (256 - 8 - 1))])


TURNS = [{"role": "user", "content": "is it small ?"}]


@pytest.mark.parametrize("family", FAMILIES)
def test_any_chat_model_answers_without_a_card_and_counts_its_tokens(family, bases):
    policy = Policy.of_chat_model(bases(family), max_new_tokens=5)
    (reply,) = policy.answer([Prompt.of(TURNS)], temperature=0.0, seed=0)
    shown = policy.tokenizer.apply_chat_template(
        TURNS, add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
    )
    assert reply.prompt_tokens == len(shown["input_ids"])
    assert 1 <= reply.generated_tokens <= 5
    assert policy.answer([Prompt.of(TURNS)], temperature=0.0, seed=1) == [reply]
    assert policy.answer([], temperature=0.0, seed=1) == []


def test_a_conversation_that_does_not_fit_is_refused(bases, tmp_path):
    policy = Policy.from_pretrained(generator_checkpoint(bases("words"), tmp_path / "policy", "policy"))
    with pytest.raises(InputError, match=r"found a conversation of 30\d tokens, expected at most 248"):
        policy.answer([Prompt.of("it " * 300)], temperature=0.0, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_are_those_of_the_next_tokens(family, bases, monkeypatch):
    """Against one unpadded row at a time, token by token."""
    monkeypatch.setattr("pitlm.engines.generators.READ", 3)
    policy = Policy.of_chat_model(bases(family), max_new_tokens=8)
    responses = ["it is small", "", "red", "the price of the red lamp is small"]
    found = policy.likelihoods(PROMPTS, responses)
    assert found[1] == (0.0, 0)
    for prompt, response, (total, count) in zip(PROMPTS, responses, found, strict=True):
        shown, told = policy.encode(prompt), policy.tokenizer.encode(response, add_special_tokens=False)
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([shown + told])).logits[0]
        each = [torch.log_softmax(logits[len(shown) + at - 1], -1)[token].item() for at, token in enumerate(told)]
        assert count == len(told)
        assert total == pytest.approx(sum(each), abs=1e-3)
