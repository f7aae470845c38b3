"""The two examples inside LiteLLM's proxy and optillm, in front of a scripted API; `pit serve` has scripted models."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import replace

import httpx
import openai
import pytest
from proxies import proxied
from real_engines import BUILD, ROOT, engine, free_port, litellm_command, optillm_command, serving
from scripted_upstream import TEXT, TOOL_CALL, Upstream, served

ASKED = [{"role": "user", "content": "What is two and two?"}]
BETTER = f"{TEXT} Better Better"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
MODELS = ("chat", "tools")
MASTER_KEY = f"sk-{'0123456789abcdef' * 4}"  # without a long one LiteLLM does not start


@pytest.fixture
def up():
    """Closing this stops `pit`."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pit(up):
    """`pit serve` with scripted models. The API of the other proxy is another one, which outlives it."""
    api = Upstream()
    with served(api) as there:
        proxy = up.enter_context(proxied(token="door-key", upstream_key="sk-upstream"))
        yield replace(proxy, direct=f"{there}/v1", upstream=api)


@pytest.fixture
def through_litellm(pit):
    """A client of LiteLLM's proxy, whose callback asks `pit`."""
    folder, port = BUILD / "litellm-proxy", free_port()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "examples" / "litellm_callback.py", folder)
    listed = "".join(
        f"  - model_name: {name}\n    litellm_params: {{model: openai/{name}, api_base: '{pit.direct}', api_key: sk-upstream}}\n"
        for name in MODELS
    )
    config = f"model_list:\n{listed}litellm_settings:\n  callbacks: litellm_callback.improves\n"
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    command = (*litellm_command(folder / "config.yaml"), "--port", port)
    settings = {"PIT_URL": pit.url, "PIT_SERVE_TOKEN": "door-key", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    settings["LITELLM_MASTER_KEY"] = MASTER_KEY
    with serving("litellm", f"http://127.0.0.1:{port}/health/liveliness", *command, **settings):
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=MASTER_KEY, max_retries=0, timeout=300)


@pytest.fixture
def through_optillm(pit):
    """A client of optillm, whose technique `pit` asks `pit`."""
    port = free_port()
    # optillm 0.4 reads the plug-ins before its options, so its --plugins-dir has no effect.
    (plugins,) = engine("optillm").folder.glob("lib/python*/site-packages/optillm/plugins")
    shutil.copy(ROOT / "examples" / "optillm_plugin.py", plugins / "pit_plugin.py")
    command = (*optillm_command(pit.direct), "--port", port)
    settings = {"PIT_URL": pit.url, "PIT_SERVE_TOKEN": "door-key", "OPENAI_API_KEY": "sk-upstream"}
    environment = {name: "" for name in ("OPTILLM_API_KEY", "CEREBRAS_API_KEY") if name in os.environ}
    with serving("optillm", f"http://127.0.0.1:{port}/health", *command, **settings, **environment):
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0, timeout=300)


def said(client, model, **more):
    return client.chat.completions.create(**{"model": model, "messages": ASKED, **more})


def check_fails_open(pit, up, client, model):
    pit.writer.failure = "out of memory"
    assert said(client, model).choices[0].message.content == TEXT
    assert len(pit.writer.asked) == 1
    up.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(pit.url)
    assert said(client, model).choices[0].message.content == TEXT


def last_request(pit):
    return json.loads(pit.upstream.requests[-1]["body"])


@pytest.mark.real("litellm")
def test_litellm_improves(pit, through_litellm):
    """The callback improves an answer, keeps stop and max_tokens, and reads the developer role."""
    reply = said(through_litellm, "chat")
    assert reply.choices[0].message.content == BETTER
    assert reply.usage.completion_tokens == 5  # what the model wrote: LiteLLM charges by it
    assert said(through_litellm, "chat", stop=["tter"]).choices[0].message.content == f"{TEXT} Be Be Be"
    assert said(through_litellm, "chat", max_tokens=2).choices[0].message.content == TEXT
    messages = [{"role": "developer", "content": "Be short."}, *ASKED]
    assert said(through_litellm, "chat", messages=messages).choices[0].message.content == BETTER
    assert pit.writer.asked[-1]["prompt"].as_messages()[0] == {"role": "system", "content": "Be short."}


@pytest.mark.real("litellm")
def test_litellm_passes(pit, through_litellm):
    """Streams, `n`, tools and JSON formats pass the callback unchanged."""
    stream = said(through_litellm, "chat", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == TEXT
    assert [c.message.content for c in said(through_litellm, "chat", n=2).choices] == [TEXT, TEXT]
    call = said(through_litellm, "tools", tools=TOOLS).choices[0].message.tool_calls[0]
    assert call.function.arguments == TOOL_CALL["function"]["arguments"]
    assert said(through_litellm, "chat", response_format={"type": "json_object"}).choices[0].message.content == TEXT
    assert pit.writer.asked == []


@pytest.mark.real("litellm")
def test_litellm_fails_open(pit, through_litellm, up):
    """With `pit serve` failing, and with `pit serve` down, the client gets the model's answer."""
    check_fails_open(pit, up, through_litellm, "chat")


@pytest.mark.real("optillm")
def test_optillm_improves(pit, through_optillm):
    """The technique improves an answer and a stream, keeps stop and max_tokens, and reads the developer role."""
    reply = said(through_optillm, "pit-chat")
    assert reply.choices[0].message.content == BETTER
    assert reply.usage.completion_tokens == 5 + 9
    stream = said(through_optillm, "pit-chat", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == BETTER
    assert said(through_optillm, "pit-chat", stop=["tter"]).choices[0].message.content == f"{TEXT} Be Be Be"
    assert said(through_optillm, "pit-chat", max_tokens=2).choices[0].message.content == TEXT
    messages = [{"role": "developer", "content": "Be short."}, *ASKED]
    assert said(through_optillm, "pit-chat", messages=messages).choices[0].message.content == BETTER
    assert last_request(pit)["messages"] == messages
    assert [c.message.content for c in said(through_optillm, "pit-chat", n=2).choices] == [BETTER, BETTER]


@pytest.mark.real("optillm")
def test_optillm_passes(pit, through_optillm):
    """Tools and JSON formats pass the technique unchanged."""
    reply = said(through_optillm, "pit-tools", tools=TOOLS)
    assert reply.choices[0].finish_reason == "tool_calls"
    assert reply.choices[0].message.tool_calls[0].function.arguments == TOOL_CALL["function"]["arguments"]
    assert last_request(pit)["tools"] == TOOLS
    reply = said(through_optillm, "pit-chat", response_format={"type": "json_object"})
    assert reply.choices[0].message.content == TEXT
    assert last_request(pit)["response_format"] == {"type": "json_object"}
    assert pit.writer.asked == []


@pytest.mark.real("optillm")
def test_optillm_fails_open(pit, through_optillm, up):
    """With `pit serve` failing, and with `pit serve` down, the client gets the model's answer."""
    check_fails_open(pit, up, through_optillm, "pit-chat")
