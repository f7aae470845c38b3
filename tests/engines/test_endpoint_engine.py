"""A server's model as an engine, on loopback."""

from __future__ import annotations

import time

import pytest
from builders import ASK
from engine_requests import REFERENCES, drain, requests
from scripted_endpoint import Fail, ScriptedEndpoint

from pitlm.core.errors import InputError
from pitlm.engines import endpoint_engine
from pitlm.engines.endpoint import ChatEndpoint
from pitlm.engines.endpoint_engine import EndpointEngine


def test_a_server_is_shown_the_reference_and_the_ask():
    def reply(request):
        return f"better than {request['messages'][1]['content']}" if len(request["messages"]) == 3 else "first"

    with ScriptedEndpoint(reply) as server:
        engine = EndpointEngine(ChatEndpoint("improver", server.base_url), ASK)
        for request in requests(0.4):
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
        assert [call.request["temperature"] for call in server.calls] == [0.4] * 3 + [0.0]


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


def test_an_interrupt_buys_no_further_answers(monkeypatch):
    def slow(request):
        time.sleep(0.2)
        return "fine"

    def interrupt(*given, **more):
        raise KeyboardInterrupt

    with ScriptedEndpoint(slow) as server:
        engine = EndpointEngine(ChatEndpoint("improver", server.base_url, concurrency=1), ASK)
        for _ in range(3):
            for request in requests():
                engine.submit(request)
        monkeypatch.setattr(endpoint_engine, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        time.sleep(1)
        assert len(server.calls) <= 2
