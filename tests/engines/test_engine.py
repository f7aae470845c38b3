"""Engines: one protocol, whoever writes; vLLM's interface as it is documented, and a server on loopback."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from builders import ASK, generator_checkpoint
from scripted_endpoint import Fail, ScriptedEndpoint

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.engines.endpoint import ChatEndpoint
from pitlm.engines.engine import EndpointEngine, LocalEngine, VLLMEngine, WriteRequest
from pitlm.models.generators import Improver, Policy

X = [Prompt.of(text) for text in ("what is the price ?", "is it small ?", "price ?")]
REFERENCES = ["silly question .", "it is small .", "read it yourself . silly question ."]


def drain(engine):
    found = {}
    while engine.pending:
        found.update({one.key: one for one in engine.step()})
    return found


def requests(temperature=0.0):
    return [WriteRequest((n, 0), x, y, temperature, seed=n) for n, (x, y) in enumerate(zip(X, REFERENCES, strict=True))]


@pytest.fixture
def improver(bases, tmp_path):
    return Improver.from_pretrained(generator_checkpoint(bases("words"), tmp_path / "improver", "improver"))


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


class FakeLLMEngine:
    """vLLM's documented LLMEngine: add_request(id, prompt, params), step() -> outputs, some of them finished."""

    @classmethod
    def from_engine_args(cls, arguments):
        made = cls()
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
    assert vars(engine._engine.arguments) == {"model": str(folder), "gpu_memory_utilization": 0.5}
    for request in requests(temperature=0.7):
        engine.submit(request)
    assert vars(engine._engine.seen[2]) == {
        "temperature": 0.7, "seed": 2, "max_tokens": 8, "stop_token_ids": [shape.tokenizer.eos_token_id],
    }  # fmt: skip
    found = drain(engine)
    assert sorted(found) == [(0, 0), (1, 0), (2, 0)]
    answer = found[1, 0].answer
    ids = shape.encode(X[1], REFERENCES[1])
    assert answer.text == shape.tokenizer.decode(ids[-3:-1], skip_special_tokens=True).strip()
    assert (answer.generated_tokens, answer.prompt_tokens) == (3, len(ids))


def test_without_vllm_the_extra_is_named(bases, tmp_path, monkeypatch):
    from pitlm.cli.main import user_message

    monkeypatch.setitem(sys.modules, "vllm", None)
    folder = generator_checkpoint(bases("words"), tmp_path / "improver", "improver")
    with pytest.raises(ModuleNotFoundError) as error:
        VLLMEngine(Improver.from_pretrained(folder, weights=False), folder)
    assert "pip install 'pitlm[vllm]'" in user_message(error.value)


def test_a_server_is_shown_the_reference_and_the_ask():
    def reply(request):
        return f"better than {request['messages'][1]['content']}" if len(request["messages"]) == 3 else "first"

    with ScriptedEndpoint(reply) as server:
        engine = EndpointEngine(ChatEndpoint("improver", server.base_url, temperature=0.4), ASK)
        for request in requests():
            engine.submit(request)
        found = drain(engine)
        assert [found[n, 0].answer.text for n in range(3)] == [f"better than {y}" for y in REFERENCES]
        assert found[0, 0].answer.generated_tokens > 0
        first = EndpointEngine(ChatEndpoint("policy", server.base_url), None)
        first.submit(requests()[0])
        assert drain(first)[0, 0].answer.text == "first"
        for messages in [call.request["messages"] for call in server.calls[:3]]:
            assert [message["role"] for message in messages] == ["user", "assistant", "user"]
            assert messages[2]["content"] == ASK


def test_a_failure_is_its_own_items_and_a_dead_server_everybodys():
    def reply(request):
        return Fail(400, message="content filter") if "small" in request["messages"][0]["content"] else "fine"

    with ScriptedEndpoint(reply) as server:
        engine = EndpointEngine(ChatEndpoint("improver", server.base_url, retries=0), ASK)
        for request in requests():
            engine.submit(request)
        found = drain(engine)
        assert [found[n, 0].answer is None for n in range(3)] == [False, True, False]
        assert "content filter" in found[1, 0].failure
        url = server.base_url
    engine = EndpointEngine(ChatEndpoint("improver", url, retries=0), ASK)
    for request in requests():
        engine.submit(request)
    with pytest.raises(InputError, match="found no server there"):
        drain(engine)
