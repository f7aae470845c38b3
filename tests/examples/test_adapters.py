"""The adapters against a real `pit serve` with scripted models. Stand-ins replace LiteLLM and optillm."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest
from openai.resources.chat.completions import Completions
from openai.types.chat import ChatCompletion
from proxies import proxied

EXAMPLES = Path(__file__).parents[2] / "examples"
ASKED = [{"role": "user", "content": "What is two and two?"}]


def load(name):
    """Load an example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reply(text="Four.", finish_reason="stop", **message):
    """A chat completion with the attributes of OpenAI's and LiteLLM's classes."""
    said = SimpleNamespace(content=text, role="assistant", **message)
    choices = [SimpleNamespace(index=0, message=said, finish_reason=finish_reason)]
    return SimpleNamespace(choices=choices, usage=SimpleNamespace(prompt_tokens=7, completion_tokens=5))


@pytest.fixture(scope="module")
def guarded():
    with proxied(token="door-key", upstream_key="sk-upstream") as proxy:
        yield proxy


@pytest.fixture
def pit(guarded, monkeypatch):
    monkeypatch.setenv("PIT_URL", guarded.url)
    monkeypatch.setenv("PIT_SERVE_TOKEN", "door-key")
    guarded.writer.asked.clear()
    guarded.writer.failure = guarded.judge.failure = ""
    guarded.writer.seconds, guarded.writer.tokens = 0.0, 3
    return guarded


@pytest.fixture(scope="module")
def litellm():
    """The parts of LiteLLM that the callback imports, and the way in which its proxy calls the hook."""

    class CustomLogger:
        def __init__(self, message_logging=True, **more):
            self.message_logging = message_logging

        async def async_post_call_success_hook(self, data, user_api_key_dict, response):
            pass

    module = ModuleType("litellm.integrations.custom_logger")
    module.CustomLogger = CustomLogger
    packages = {name: ModuleType(name) for name in ("litellm", "litellm.integrations")}
    with patch.dict(sys.modules, {**packages, module.__name__: module}):
        callback = load("litellm_callback").improves
    assert isinstance(callback, CustomLogger)
    assert callback.message_logging
    loop = asyncio.Runner()

    def call(data, response):
        hook = callback.async_post_call_success_hook
        changed = loop.run(hook(user_api_key_dict=object(), data=data, response=response))
        assert changed is response  # older proxies use the object, newer ones the result
        return changed.choices[0]

    with loop:
        yield call
        loop.run(callback.client.aclose())


def test_litellm_gets_the_improved_answer(pit, litellm):
    choice = litellm({"model": "m", "messages": ASKED}, reply(finish_reason="length"))
    assert (choice.message.content, choice.finish_reason) == ("Four. Better Better", "stop")
    assert pit.writer.asked[0]["prompt"].as_messages() == ASKED


def test_litellm_keeps_what_was_asked_of_the_answer(pit, litellm):
    data = {
        "messages": ASKED,
        "max_tokens": 9,
        "max_completion_tokens": 8,
        "temperature": 0.1,
        "seed": 5,
        "stop": "tter",
    }
    assert litellm(data, reply()).message.content == "Four. Be Be Be"  # three rounds, each cut before `tter`
    asked = pit.writer.asked[0]
    assert (asked["max_tokens"], asked["temperature"], asked["seed"]) == (8, 0.1, 5)
    assert litellm({"messages": ASKED, "max_tokens": 2}, reply()).message.content == "Four."  # the model wrote 3


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        ({"messages": ASKED, "stream": True}, reply()),
        ({"messages": ASKED, "tools": [{"type": "function"}]}, reply()),
        ({"messages": ASKED, "response_format": {"type": "json_object"}}, reply()),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, reply()),
        ({"input": "an embedding"}, SimpleNamespace(data=[], choices=reply().choices)),
        ({"messages": ASKED}, reply(None, "tool_calls", tool_calls=[object()])),
        ({"messages": ASKED}, reply(refusal="I will not.")),
        ({"messages": ASKED}, reply("  ")),
        ({"messages": ASKED, "n": 2}, SimpleNamespace(choices=reply().choices * 2)),
    ],
)
def test_litellm_leaves_what_cannot_be_replaced(pit, litellm, data, answer):
    before = answer.choices[0].message.content
    assert litellm(data, answer).message.content == before
    assert pit.writer.asked == []


FAILURES = ["models", "token", "silence", "nobody", "nonsense"]


def break_it(why, pit, monkeypatch):
    match why:
        case "models":
            pit.writer.failure = "out of memory"
        case "token":
            monkeypatch.setenv("PIT_SERVE_TOKEN", "wrong")
        case "silence":
            pit.writer.seconds = 5.0
            monkeypatch.setenv("PIT_SECONDS", "0.1")
        case "nobody":
            monkeypatch.setenv("PIT_URL", "http://127.0.0.1:9/v1")
        case "nonsense":
            monkeypatch.setenv("PIT_URL", pit.direct + "/models?")  # 200, and no trace


@pytest.mark.parametrize("why", FAILURES)
def test_litellm_fails_open(pit, litellm, monkeypatch, caplog, why):
    break_it(why, pit, monkeypatch)
    choice = litellm({"messages": ASKED}, reply(finish_reason="length"))
    assert (choice.message.content, choice.finish_reason) == ("Four.", "length")
    assert "not improved" in caplog.text
    assert "two and two" not in caplog.text


class Client:
    """A stand-in of the OpenAI client that optillm passes, which takes what the client itself takes."""

    def __init__(self, answer=None):
        self.answer, self.asked = answer or reply(), {}
        self.chat = SimpleNamespace(completions=self)

    def create(self, **given):
        inspect.signature(Completions.create).bind(self, **given)
        self.asked = given
        return self.answer


def completion(text="Four.", finish_reason="stop", **message):
    """A completion of the OpenAI client itself."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return ChatCompletion.model_validate(whole)


def test_optillm_that_gives_the_messages_gets_a_whole_completion(pit):
    client, messages = Client(completion(finish_reason="length")), [{"role": "developer", "content": "Brief."}, *ASKED]
    config = {"temperature": 0.2, "stream": True, "n": 1, "optillm_approach": "pit"}
    whole, tokens = load("optillm_plugin").run("", "User: lost", client, "m", request_config=config, messages=messages)
    [choice] = whole["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Four. Better Better", "stop")
    assert whole["usage"]["completion_tokens"] == tokens == 5 + 3 * 3  # three rounds; the last was rejected
    assert whole["usage"]["total_tokens"] == 7 + tokens
    assert client.asked == {"model": "m", "messages": messages, "temperature": 0.2}
    assert pit.writer.asked[0]["prompt"].as_messages() == [{"role": "system", "content": "Brief."}, *ASKED]
    assert load("optillm_plugin").run("", "", client, "m", {"n": 2}, messages=messages)[0] == "Four. Better Better"


CALL = {"id": "t", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("config", "messages", "answer"),
    [
        ({"tools": [{"type": "function", "function": {"name": "add"}}]}, ASKED, completion()),
        ({"response_format": {"type": "json_object"}}, ASKED, completion()),
        ({"logprobs": True}, ASKED, completion()),
        ({}, [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}], completion()),
        ({}, [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}], completion()),
        ({}, ASKED, completion(None, "tool_calls", tool_calls=[CALL])),
        ({}, ASKED, completion(None, refusal="I will not.")),
        ({}, ASKED, completion("Fo", "content_filter")),
    ],
)
def test_optillm_gets_the_model_s_own_completion_where_another_text_might_not_do(pit, config, messages, answer):
    client = Client(answer)
    assert load("optillm_plugin").run("", "", client, "m", config, messages=messages) == (answer.model_dump(), 5)
    assert client.asked == {"model": "m", "messages": messages, **config}
    assert pit.writer.asked == []


def test_optillm_gets_the_improved_answer_and_all_the_tokens(pit):
    plugin, client = load("optillm_plugin"), Client()
    assert plugin.SLUG == "pit"
    config = {"temperature": 0.2, "stream": False, "n": 1, "response_format": None, "mcts_depth": 1}
    text, tokens = plugin.run("Be brief.", "User: What is two and two?", client, "m", request_config=config)
    assert (text, tokens) == ("Four. Better Better", 5 + 3 * 3)  # three rounds; the last was rejected
    messages = [{"role": "system", "content": "Be brief."}, *ASKED]
    assert client.asked == {"model": "m", "messages": messages, "temperature": 0.2}
    assert pit.writer.asked[0]["prompt"].as_messages() == messages
    assert pit.writer.asked[0]["temperature"] == 0.2
    assert plugin.run("", "What is two and two?", client, "m")[0] == "Four. Better Better"  # the call of older releases
    assert client.asked["messages"] == ASKED


def test_optillm_s_conversation_is_taken_apart_where_its_turns_alternate(pit):
    plugin, client = load("optillm_plugin"), Client()
    plugin.run("", "User: Hi\nthere\nAssistant: Hello\nUser: Two and two?", client, "m")
    turns = [("user", "Hi\nthere"), ("assistant", "Hello"), ("user", "Two and two?")]
    assert client.asked["messages"] == [{"role": role, "content": text} for role, text in turns]
    assert pit.writer.asked[0]["prompt"].as_messages() == client.asked["messages"]
    pit.writer.asked.clear()
    for query in ("User: a\nUser: b", "Assistant: a\nUser: b", "User: a\nAssistant: b", "Say\nUser: a"):
        assert plugin.run("", query, client, "m") == ("Four.", 5)
        assert client.asked["messages"] == [{"role": "user", "content": query}]
    assert pit.writer.asked == []


def test_optillm_keeps_what_was_asked_of_the_answer(pit):
    plugin = load("optillm_plugin")
    assert plugin.run("", "User: Why?", Client(), "m", {"stop": ["tter"]})[0] == "Four. Be Be Be"
    for config in ({"max_tokens": 2}, {"response_format": {"type": "json_object"}}):
        assert plugin.run("", "User: Why?", Client(), "m", config)[0] == "Four."
    for answer in (reply(None, "tool_calls"), reply("Fo", "content_filter")):
        assert plugin.run("", "User: Why?", Client(answer), "m") == (answer.choices[0].message.content or "", 5)


@pytest.mark.parametrize("why", FAILURES)
def test_optillm_fails_open(pit, monkeypatch, caplog, why):
    break_it(why, pit, monkeypatch)
    assert load("optillm_plugin").run("", "User: two and two?", Client(), "m") == ("Four.", 5)
    assert "not improved" in caplog.text
    assert "two and two" not in caplog.text
