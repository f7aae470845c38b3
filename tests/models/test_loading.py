"""Checkpoints: pad and end token, size of the embedding, cards, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from builders import ASK, CHAT, generator_checkpoint, scorer_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from pitlm.core.errors import InputError
from pitlm.core.recipe import InitSection
from pitlm.data.template import PLAIN_CHAT_TEMPLATE
from pitlm.engines.generators import Improver, Policy
from pitlm.models.loading import Card, load_card, load_model, load_tokenizer, save
from pitlm.models.scorers import GapModel, RewardModel
from pitlm.models.scratch import make_from_scratch


@pytest.mark.parametrize("family", CHAT)
def test_pad_is_never_the_end_token(bases, family):
    tokenizer = load_tokenizer(bases(family))
    model = load_model(bases(family), tokenizer)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "right"
    assert tokenizer.chat_template is not None
    rows = model.get_input_embeddings().num_embeddings
    assert rows >= len(tokenizer) > max(tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert model.get_output_embeddings().weight.shape[0] == rows


def test_a_pad_token_that_is_the_end_token_is_replaced_and_has_room_in_the_model(bases):
    plain = AutoTokenizer.from_pretrained(bases("gpt"))
    assert plain.pad_token_id == plain.eos_token_id
    tokenizer = load_tokenizer(bases("gpt"))
    assert len(tokenizer) == len(plain) + 1
    assert tokenizer.eos_token_id == plain.eos_token_id
    before = AutoModelForCausalLM.from_pretrained(bases("gpt"))
    for writes in (True, False):
        after = load_model(bases("gpt"), tokenizer, writes=writes)
        embedding = after.get_input_embeddings().weight
        assert embedding.shape[0] == len(plain) + 1
        torch.testing.assert_close(embedding[: len(plain)], before.get_input_embeddings().weight)


def test_a_spare_token_is_used_for_padding_where_there_is_one(bases):
    plain, tokenizer = AutoTokenizer.from_pretrained(bases("llama3")), load_tokenizer(bases("llama3"))
    assert plain.pad_token_id is None
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert len(tokenizer) == len(plain)


def test_a_tokenizer_keeps_its_own_template_and_gets_plain_marks_without_one(bases):
    assert load_tokenizer(bases("llama3")).chat_template == AutoTokenizer.from_pretrained(bases("llama3")).chat_template
    assert load_tokenizer(bases("gpt")).chat_template == PLAIN_CHAT_TEMPLATE


@pytest.mark.parametrize("family", CHAT)
def test_a_saved_checkpoint_brings_back_tokenizer_template_and_weights(bases, tmp_path, family):
    first = load_tokenizer(bases(family))
    model = load_model(bases(family), first)
    save(model, first, Card("improver", ASK, 8), tmp_path / "model")
    again = load_tokenizer(tmp_path / "model")
    assert (again.pad_token_id, again.eos_token_id, again.chat_template) == (
        first.pad_token_id,
        first.eos_token_id,
        first.chat_template,
    )
    text = "the price is nine ."
    assert again.encode(text, add_special_tokens=False) == first.encode(text, add_special_tokens=False)
    loaded = load_model(tmp_path / "model", again)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert list((tmp_path / "model").glob("*.safetensors"))
    assert load_card(tmp_path / "model", "improver") == Card("improver", ASK, 8)


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_sampling_habits_of_the_base_are_left_behind(bases, family):
    """Instruct models ship top-p, temperatures and more end tokens; RL and inference must sample alike."""
    tokenizer = load_tokenizer(bases(family))
    settings = load_model(bases(family), tokenizer).generation_config
    assert settings.eos_token_id == tokenizer.eos_token_id
    assert settings.pad_token_id == tokenizer.pad_token_id
    assert settings.top_p in (None, 1.0)
    assert settings.repetition_penalty in (None, 1.0)


def test_a_score_head_that_is_there_is_loaded(bases, tmp_path):
    folder = scorer_checkpoint(bases("llama3"), tmp_path / "gap", "gap")
    heads = [load_model(folder, load_tokenizer(folder), writes=False).score.weight for _ in range(2)]
    assert torch.equal(*heads)
    assert heads[0].shape == (1, 16)


LOADERS = {"policy": Policy, "improver": Improver, "reward": RewardModel, "gap": GapModel}


@pytest.mark.parametrize(
    ("wanted", "given"), [("policy", "improver"), ("improver", "policy"), ("reward", "gap"), ("gap", "improver")]
)
def test_a_model_of_another_kind_is_refused(bases, tmp_path, wanted, given):
    make = generator_checkpoint if given in ("policy", "improver") else scorer_checkpoint
    folder = make(bases("words"), tmp_path / "model", given)
    with pytest.raises(InputError, match=rf"found .*\b{given}\b.*, expected .*\b{wanted}\b"):
        LOADERS[wanted].from_pretrained(folder)
    LOADERS[given].from_pretrained(folder)


@pytest.mark.parametrize(
    "changes", [{"kind": "alien"}, {"max_new_tokens": 0}, {"max_new_tokens": "many"}, {"ask": None}]
)
def test_a_card_that_says_what_no_model_is_is_refused(tmp_path, changes):
    (tmp_path / "pit.json").write_text(json.dumps({"kind": "gap", "ask": ASK, "max_new_tokens": 8, **changes}))
    with pytest.raises(InputError, match=r"pit\.json: cannot load a model card"):
        Card.load(tmp_path)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_folder_that_is_missing_or_not_ours_is_refused(bases, tmp_path, kind):
    with pytest.raises(InputError, match="found no such folder"):
        LOADERS[kind].from_pretrained(tmp_path / "none")
    with pytest.raises(InputError, match=r"found no pit\.json"):
        LOADERS[kind].from_pretrained(bases("words"))
    folder = tmp_path / "empty"
    folder.mkdir()
    Card(kind, ASK, 8).save(folder)
    with pytest.raises(InputError, match="cannot load a tokenizer"):
        LOADERS[kind].from_pretrained(folder)


def test_a_folder_without_weights_is_refused(bases, tmp_path):
    load_tokenizer(bases("words")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot load a model"):
        load_model(tmp_path, load_tokenizer(tmp_path))


@pytest.mark.parametrize(
    "text", ["{", '{"kind": "gap"}', '{"kind": "gap", "ask": "a", "max_new_tokens": 8, "more": 1}']
)
def test_an_unreadable_card_is_refused_by_name(tmp_path, text):
    (tmp_path / "pit.json").write_text(text)
    with pytest.raises(InputError, match=r"pit\.json: cannot load a model card"):
        load_card(tmp_path, "gap")


@pytest.mark.parametrize("tokenizer", ["words", "bpe"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_model_from_scratch_is_reproducible_and_reads_its_texts(tmp_path, architecture, tokenizer):
    init = InitSection(
        architecture=architecture, layers=1, hidden=16, heads=2, mlp=32, tokenizer=tokenizer, vocabulary=300
    )
    texts = ["the price is nine .", "is it small ?"]
    for name in ("a", "b"):
        make_from_scratch(init, texts, tmp_path / name, seed=3, max_tokens=64)
    make_from_scratch(init, texts, tmp_path / "c", seed=4, max_tokens=64)
    a, b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / name).get_input_embeddings().weight for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    loaded = load_tokenizer(tmp_path / "a")
    for text in texts:
        assert loaded.decode(loaded.encode(text, add_special_tokens=False)) == text
    assert json.loads((tmp_path / "a" / "config.json").read_text())["max_position_embeddings"] == 64


def test_words_never_seen_are_unknown_and_bytes_never_are(bases):
    words, bpe = load_tokenizer(bases("words")), load_tokenizer(bases("bpe"))
    assert words.encode("zebra", add_special_tokens=False) == [words.unk_token_id]
    assert bpe.decode(bpe.encode("zebra ü", add_special_tokens=False)) == "zebra ü"
