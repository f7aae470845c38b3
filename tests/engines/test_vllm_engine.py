"""vLLM as an engine: a stand-in has vLLM's documented interface."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from builders import ASK, generator_checkpoint
from engine_requests import REFERENCES, X, drain, requests
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from pitlm.engines.engine import ModelSource
from pitlm.engines.generators import Improver
from pitlm.engines.vllm_engine import VLLMEngine
from pitlm.models.loading import Card, load_model, load_tokenizer, save


class FakeLLMEngine:
    """vLLM's documented LLMEngine: add_request(id, prompt, params), step() -> outputs, some of them finished."""

    made = []

    @classmethod
    def from_engine_args(cls, arguments):
        made = cls()
        cls.made.append(made)
        made.arguments, made.queue, made.seen = arguments, [], []
        return made

    def add_request(self, request_id, prompt, params):
        assert isinstance(request_id, str)
        self.queue.append((request_id, prompt["prompt_token_ids"], params))
        self.seen.append(params)

    def step(self):
        request_id, ids, params = self.queue.pop()
        begun = [SimpleNamespace(request_id=other, finished=False, outputs=[]) for other, *_ in self.queue]
        written = SimpleNamespace(token_ids=(*ids[-3:-1], *params.stop_token_ids))
        return [*begun, SimpleNamespace(request_id=request_id, finished=True, outputs=[written])]


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLMEngine = FakeLLMEngine
    module.EngineArgs = module.SamplingParams = lambda **fields: SimpleNamespace(**fields)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_vllm_is_fed_and_read_as_documented(vllm, bases, tmp_path):
    folder = generator_checkpoint(bases("words"), tmp_path / "improver", "improver")
    shape = Improver.from_pretrained(folder, weights=False)
    assert next(shape.model.parameters()).device.type == "meta"
    engine = VLLMEngine(shape, folder, gpu_memory_utilization=0.5)
    expected = {"model": str(folder), "dtype": "float32", "gpu_memory_utilization": 0.5}
    assert vars(vllm.LLMEngine.made[-1].arguments) == expected
    for request in requests(temperature=0.7):
        engine.submit(request)
    assert vars(vllm.LLMEngine.made[-1].seen[2]) == {
        "temperature": 0.7, "seed": 2, "max_tokens": 8, "stop_token_ids": [shape.tokenizer.eos_token_id],
    }  # fmt: skip
    found = drain(engine)
    assert sorted(found) == [(0, 0), (1, 0), (2, 0)]
    answer = found[1, 0].answer
    ids = shape.encode(X[1], REFERENCES[1])
    assert answer.text == shape.tokenizer.decode(ids[-3:-1], skip_special_tokens=True).strip()
    assert (answer.generated_tokens, answer.prompt_tokens) == (3, len(ids))


def test_vllm_gets_a_merged_copy_of_an_adapter(vllm, bases, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(bases("words"))
    wrapped = get_peft_model(load_model(bases("words"), tokenizer), LoraConfig(target_modules="all-linear"))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save(wrapped, tokenizer, Card("improver", ASK, 8), tmp_path / "improver", start=bases("words"))
    read, made = [], FakeLLMEngine.from_engine_args
    monkeypatch.setattr(
        FakeLLMEngine,
        "from_engine_args",
        lambda args: read.append(load_file(Path(args.model) / "model.safetensors")) or made(args),
    )
    VLLMEngine.open(ModelSource("improver", tmp_path / "improver"))
    wanted = wrapped.merge_and_unload().state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in read[0].items())
    assert len(read[0]) > 10
    assert not Path(vllm.LLMEngine.made[-1].arguments.model).exists()


def test_without_vllm_the_extra_is_named(bases, tmp_path, monkeypatch):
    from pitlm.cli.main import user_message

    monkeypatch.setitem(sys.modules, "vllm", None)
    folder = generator_checkpoint(bases("words"), tmp_path / "improver", "improver")
    with pytest.raises(ModuleNotFoundError) as error:
        VLLMEngine(Improver.from_pretrained(folder, weights=False), folder)
    assert "pip install 'pitlm[vllm]'" in user_message(error.value)
