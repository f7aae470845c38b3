"""A model in this process writes its own answers, whatever is written beside them, and refuses what cannot fit."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from builders import TINY_LLAMA, generator_checkpoint, random_model
from engine_requests import REFERENCES, X, drain, requests
from transformers import AutoModelForCausalLM

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.engines import decoder as decoder_module
from pitlm.engines.decoder import Decoder, DecodingRow, choose, write_batch
from pitlm.engines.engine import WriteRequest
from pitlm.engines.generators import Policy
from pitlm.engines.local_engine import LocalEngine
from pitlm.models.trees import ARCHITECTURES, warn_once

PAD, END, VOCABULARY = 0, 1, 40

LLAMA = {**TINY_LLAMA, "max_position_embeddings": 256}
WINDOW = {**LLAMA, "sliding_window": 12}  # shorter than most prompts below
SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {key: value for key, value in LLAMA.items() if "key_value" not in key and key != "head_dim"},
    "gemma3_text": {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": WINDOW,
    "phi3": WINDOW,
    "starcoder2": WINDOW,
    "qwen2": {**WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


def tiny(architecture: str):
    shape = {**SHAPES.get(architecture, LLAMA), "vocab_size": VOCABULARY, "bos_token_id": None}
    return random_model(AutoModelForCausalLM, architecture, **shape, pad_token_id=PAD, eos_token_id=END)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def prompts(count: int = 24) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(2, VOCABULARY) for _ in range(rng.randrange(2, 50))] for _ in range(count)]


def write(
    model, asked: dict[int, list[int]], tokens: int, temperature: float = 0.0, watch=None
) -> dict[int, list[int]]:
    """Return all completions, each of at most 12 tokens, with its number as its seed."""
    decoder = Decoder(model, end=END, pad=PAD, tokens_per_batch=tokens)
    for key, ids in asked.items():
        decoder.submit(DecodingRow(key, ids, 12, temperature, seed=key))
    written = {}
    while len(written) < len(asked):
        ended = decoder.step()
        if watch is not None:
            watch(decoder, ended)
        written.update({row.key: row.written for row in ended})
    assert decoder.active == decoder.waiting_tokens == 0
    return written


def greedy(model, rows: list[list[int]]) -> list[list[int]]:
    """What the model's own ``generate`` writes."""
    return write_batch(model, rows, max_new_tokens=12, do_sample=False, pad_token_id=PAD, eos_token_id=END)


@pytest.mark.parametrize("architecture", [*sorted(ARCHITECTURES), "gemma2"])
def test_greedy_is_what_generate_writes(architecture):
    model = tiny(architecture)
    expected = greedy(model, prompts())
    written = write(model, dict(enumerate(prompts())), 400)
    assert written == dict(enumerate(expected))
    assert len(set(map(tuple, expected))) > 12  # different prompts give different completions


def test_what_cannot_be_refilled_says_so_once(caplog):
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        models = [Decoder(tiny("gemma2"), end=END, pad=PAD) for _ in range(2)]
    assert not any(decoder.own for decoder in models)
    assert [record.message for record in caplog.records] == [
        "gemma2: its places cannot be refilled; writing batch after batch"
    ]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(architecture):
    model, asked = tiny(architecture), dict(enumerate(prompts()))
    together = write(model, asked, 4000, temperature=1.0)
    few = {key: asked[key] for key in (3, 17, 5)}
    for tokens in (64, 4000):
        assert write(model, few, tokens, temperature=1.0) == {key: together[key] for key in few}
    assert write(model, dict(reversed(asked.items())), 300, temperature=1.0) == together
    same = write(model, dict.fromkeys(range(8), asked[3]), 4000, temperature=1.0)
    assert same[3] == together[3]
    assert len(set(map(tuple, same.values()))) > 4


def test_the_logits_of_a_row_are_the_same_to_the_last_bit_whoever_its_neighbours_are(llama, monkeypatch):
    """On a CPU. Because of this a killed job ends with the same bytes."""
    asked = dict(enumerate(prompts()))
    seen: dict[int, list[torch.Tensor]] = {}

    def watched(logits, rows):
        for row, own in zip(rows, logits, strict=True):
            if row is not None:
                seen.setdefault(row.key, []).append(own.clone())
        return choose(logits, rows)

    monkeypatch.setattr(decoder_module, "choose", watched)
    write(llama, asked, 4000)
    together = dict(seen)
    for key in (3, 17, 20):
        seen.clear()
        write(llama, {key: asked[key]}, 64)
        assert all(torch.equal(a, b) for a, b in zip(seen[key], together[key], strict=True)), key


def test_the_batch_stays_within_its_tokens_and_full(llama):
    loads, sizes = [], []

    def watch(decoder, ended):
        rows = [row for row in decoder.rows if row] + ended
        loads.append(len(rows) * max((row.room for row in rows), default=0))
        sizes.append((decoder.active + len(ended), bool(decoder.waiting)))

    write(llama, dict(enumerate(prompts(60))), 640, watch=watch)
    assert max(loads) <= 640
    busy = [size for size, waiting in sizes if waiting]
    assert min(busy) >= 0.6 * max(busy)  # a free place is filled at once, not when all are free


def test_whole_batches_stay_within_their_tokens_on_the_way_up():
    decoder = Decoder(tiny("gemma2"), end=END, pad=PAD, tokens_per_batch=160)
    decoder.submit(DecodingRow("first", [2] * 2, 12, 0.0, seed=0))
    decoder.step()  # from here on the lengths go up
    for number in range(9):
        decoder.submit(DecodingRow(number, [2] * 4, 12, 0.0, seed=0))
    decoder.submit(DecodingRow("long", [2] * 60, 12, 0.0, seed=0))
    loads = []
    while len(loads) < 2 and (ended := decoder.step()):
        loads.append(len(ended) * max(row.room for row in ended))
    assert max(loads) <= 160


def test_a_row_that_is_larger_than_the_batch_runs_alone(llama):
    asked = {0: list(range(2, 40)), 1: [5, 6]}
    expected = greedy(llama, list(asked.values()))
    assert write(llama, asked, 16) == dict(enumerate(expected))


def test_a_prompt_of_one_token_is_answered(llama):
    assert write(llama, {0: [5], 1: [5], 2: [6]}, 400) == dict(enumerate(greedy(llama, [[5], [5], [6]])))


def test_rows_may_come_while_others_are_written(llama):
    asked = prompts(10)
    expected = greedy(llama, asked)
    decoder = Decoder(llama, end=END, pad=PAD, tokens_per_batch=320)
    written, waiting = {}, list(enumerate(asked))
    while len(written) < len(asked):
        if waiting:
            key, ids = waiting.pop()
            decoder.submit(DecodingRow(key, ids, 12, 0.0, seed=0))
        written.update({row.key: row.written for row in decoder.step()})
    assert written == dict(enumerate(expected))
    assert decoder.step() == []


def test_samples_follow_the_distribution():
    """4,000 draws agree with the softmax by hand within four standard deviations."""
    count = 4000
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -torch.inf])
    for temperature in (1.0, 0.5):
        rows = [DecodingRow(n, [2], 1, temperature, seed=n) for n in range(count)]
        drawn = torch.bincount(torch.tensor(choose(logits.expand(count, -1), rows)), minlength=5) / count
        expected = (logits / temperature).exp() / (logits / temperature).exp().sum()
        assert ((drawn - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_rows_of_several_temperatures_share_a_pass():
    logits = torch.tensor([[0.0, 3.0, 1.0]] * 3)
    greedy = DecodingRow(0, [2], 1, 0.0, seed=0)
    chosen = [choose(logits, [greedy, None, DecodingRow(2, [2], 1, 50.0, seed=n)]) for n in range(20)]
    assert {row[0] for row in chosen} == {1}
    assert {row[2] for row in chosen} == {0, 1, 2}


def test_rows_of_like_length_follow_one_another_down_and_up_again(llama):
    """Like a lift: a row that it has passed waits for its return."""
    decoder = Decoder(llama, end=END, pad=PAD, tokens_per_batch=1)  # one row at a time

    def submit(*lengths):
        for length in lengths:
            decoder.submit(DecodingRow(length, [2] * length, 1, 0.0, seed=0))

    def next_rows(count):
        ended = []
        while len(ended) < count:
            ended += [row.key for row in decoder.step()]
        return ended

    submit(20, 100, 40, 60, 101, 41)
    assert next_rows(3) == [101, 100, 60]
    submit(80, 50, 110)
    assert next_rows(3) == [50, 41, 40]
    assert next_rows(3) == [20, 80, 110]


def test_a_local_engine_writes_what_the_model_does(improver, bases, tmp_path):
    expected = improver.propose(X, REFERENCES, temperature=0.0)
    engine = LocalEngine(improver)
    assert engine.hungry
    for request in requests():
        engine.submit(request)
    assert engine.pending == 3
    found = drain(engine)
    assert [found[n, 0].answer for n in range(3)] == expected
    assert (engine.pending, engine.step()) == (0, [])

    policy = Policy.from_pretrained(generator_checkpoint(bases("words"), tmp_path / "policy", "policy"))
    first = LocalEngine(policy)
    for request in requests():
        first.submit(request)
    found = drain(first)
    assert [found[n, 0].answer for n in range(3)] == policy.answer(X, temperature=0.0)


def test_what_does_not_fit_the_window_is_refused_before_it_costs_anything(improver):
    engine = LocalEngine(improver)
    with pytest.raises(InputError, match="found a conversation of"):
        engine.submit(WriteRequest((0, 0), Prompt.of("price " * 500), "a", 0.0, 0))
    assert engine.pending == 0


def test_a_template_that_refuses_a_role_is_that_rows_fault(improver):
    improver.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match="the chat template refuses this conversation: System role not supported"):
        LocalEngine(improver).submit(requests()[0])
