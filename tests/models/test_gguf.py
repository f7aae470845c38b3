"""GGUF files as a start: the same model as the checkpoint that the file was written from."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_files import WINDOW, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.engines.generators import Policy
from pitlm.models.gguf import converted
from pitlm.models.loading import load_model, load_shape, load_tokenizer, window_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_a_gguf_file_is_the_model_and_the_tokenizer_that_it_was_written_from(kind, tmp_path, bases):
    folder = bases("bpe")
    file = write_gguf(tmp_path / "small.gguf", folder, GGMLQuantizationType[kind])
    wanted = AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(file)
    for text in ("We sell a red sofa, for 20.", " \n two  spaces", "naïve 東京 🙂"):
        assert tokenizer(text)["input_ids"] == wanted(text)["input_ids"]
    turns = [{"role": "user", "content": "why ?"}, {"role": "assistant", "content": "so"}]
    assert tokenizer.apply_chat_template(turns) == wanted.apply_chat_template(turns)
    assert tokenizer.eos_token == wanted.eos_token
    ids = torch.tensor([[5, 9, 20, 31, 8, 77, 12]])
    model, source = load_model(file, tokenizer), AutoModelForCausalLM.from_pretrained(file.with_suffix(""))
    with torch.no_grad():
        logits = source(ids).logits
        # transformers adds the unknown token <|endoftext|> to each tokenizer of this kind that lacks the token.
        torch.testing.assert_close(model(ids).logits[..., : logits.shape[-1]], logits, rtol=1e-5, atol=1e-5)
    assert window_of(load_shape(file).config) == WINDOW


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path, bases, cache):
    file = write_gguf(tmp_path / "small.gguf", bases("bpe"), GGMLQuantizationType.F16)
    first = converted(file)
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert converted(file) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    write_gguf(file, bases("bpe"), GGMLQuantizationType.Q8_0)
    assert converted(file) != first
    assert first.is_relative_to(cache)


def test_an_answer_comes_from_a_gguf_file(tmp_path, bases):
    file = write_gguf(tmp_path / "small.GGUF", bases("bpe"), GGMLQuantizationType.F32)
    (answer,) = Policy.of_chat_model(file, max_new_tokens=4).answer([Prompt.of("why ?")], temperature=0)
    assert answer.generated_tokens > 0


def test_what_is_no_known_gguf_file_is_refused_by_name(tmp_path, bases):
    missing, damaged = tmp_path / "missing.gguf", tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(range(200)))
    unknown = write_gguf(tmp_path / "unknown.gguf", bases("bpe"), GGMLQuantizationType.F32, architecture="mammoth")
    short = write_gguf(tmp_path / "short.gguf", bases("bpe"), GGMLQuantizationType.F32)
    short.write_bytes(short.read_bytes()[:-1000])
    for file, why in ((missing, "no such file"), (damaged, ""), (unknown, "mammoth"), (short, "")):
        with pytest.raises(InputError, match=f"{file.name}: cannot load a GGUF file: .*{why}"):
            load_tokenizer(file)
        with pytest.raises(InputError, match=f"{file.name}: cannot load a GGUF file: .*{why}"):
            load_shape(file)
