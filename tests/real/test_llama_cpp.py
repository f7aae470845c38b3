"""llama.cpp's server with SmolLM2 as the upstream of `pit serve`, whose models are SmolLM2 after two steps each."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from real_engines import BUILD, engine, improved, llama_cpp, pit_serve, proposals, run

ASKED = [{"role": "user", "content": "How do I boil an egg?"}]
SETTLED = {"model": "any", "messages": ASKED, "temperature": 0, "seed": 7, "max_tokens": 24}
SCHEMA = {
    "type": "object",
    "properties": {"minutes": {"type": "integer"}},
    "required": ["minutes"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "boil", "description": "Boil an egg.", "parameters": SCHEMA},
    }
]


@pytest.fixture(scope="module")
def upstream(smol):
    engine("llama.cpp")
    with llama_cpp("llama-cpp", smol["weights"]) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(smol, upstream):
    models = ("--improver", smol["improver"], "--gap", smol["gap"])
    with pit_serve("pit-llama-cpp", *models, "--upstream", upstream, "--improve-timeout", 300) as url:
        yield url


def client(url):
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=900)


def without_ids(reply):
    """What a reply says, without what differs from call to call."""
    told = reply.json()
    return [{**choice, "message": {**choice["message"], "tool_calls": _calls(choice)}} for choice in told["choices"]]


def _calls(choice):
    return [call["function"] for call in choice["message"].get("tool_calls") or []]


def post(url, **more):
    return httpx.post(f"{url}/chat/completions", json={**SETTLED, **more}, timeout=900)


@pytest.mark.real("llama.cpp")
def test_chat(upstream, proxy):
    """A chat through `pit serve`: y_0 is the upstream's own answer; the same seed gives the same final answer."""
    direct = client(upstream).chat.completions.create(**SETTLED)
    first, again = (
        client(proxy).chat.completions.create(**SETTLED, extra_body={"pit": {"original": True}}) for _ in "12"
    )
    assert first.pit["outcome"] in ("improved", "kept")
    assert first.pit["original"] == direct.choices[0].message.content
    assert len(first.pit["gaps"]) >= 1
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.usage.completion_tokens >= direct.usage.completion_tokens


@pytest.mark.real("llama.cpp")
def test_streaming(proxy):
    """A stream with stream_options: the text equals that of the whole answer, and usage comes last."""
    whole = client(proxy).chat.completions.create(**SETTLED)
    chunks = list(client(proxy).chat.completions.create(**SETTLED, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.real("llama.cpp")
def test_stop(proxy):
    """An answer ends before a stop sequence, whoever wrote it."""
    text = client(proxy).chat.completions.create(**SETTLED, stop=["."]).choices[0].message.content
    assert "." not in text


@pytest.mark.real("llama.cpp")
@pytest.mark.parametrize(
    ("what", "more"),
    [
        ("tools", {"tools": TOOLS}),
        (
            "a JSON schema",
            {
                "response_format": {"type": "json_schema", "json_schema": {"name": "egg", "schema": SCHEMA}},
                "max_tokens": 200,
            },
        ),
        ("a grammar", {"grammar": 'root ::= "yes" | "no"'}),
        ("log-probabilities", {"logprobs": True, "top_logprobs": 2}),
    ],
    ids=["tools", "schema", "grammar", "logprobs"],
)
def test_passes_untouched(upstream, proxy, what, more):
    """A request with tools, a JSON schema, a grammar or log-probabilities passes untouched."""
    direct, through = post(upstream, **more), post(proxy, **more)
    assert through.status_code == direct.status_code == 200
    assert through.headers["x-pit"] == "passed"
    assert without_ids(through) == without_ids(direct)
    if what == "a JSON schema":
        assert set(json.loads(through.json()["choices"][0]["message"]["content"])) == {"minutes"}


@pytest.mark.real("llama.cpp")
def test_cancelled(upstream, proxy):
    """When a client hangs up, the upstream stops writing for it."""
    request = {**SETTLED, "max_tokens": 900, "ignore_eos": True, "pit": {"mode": "off"}, "stream": True}
    with httpx.stream("POST", f"{proxy}/chat/completions", json=request, timeout=900) as reply:
        chunks = reply.iter_bytes()  # without this name the response would be closed at once
        assert next(chunks)
        begun = wait_for_busy(upstream, 1)
    assert len(begun) == 1
    (ended,) = [slot for slot in wait_for_busy(upstream, 0) if slot["id"] == begun[0]["id"]]
    assert written(ended) < 900


def wait_for_busy(upstream, count):
    """Wait until the server writes this many answers. Return its slots: those that write, or all if none should."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        slots = httpx.get(upstream.replace("/v1", "/slots"), timeout=60).json()
        busy = [slot for slot in slots if slot["is_processing"]]
        if len(busy) == count:
            return busy or slots
        time.sleep(0.05)
    raise AssertionError(f"found {len(busy)} busy slots, expected {count}")


def written(slot):
    """Number of tokens that a slot has written for its last request."""
    return slot["next_token"][0]["n_decoded"]


@pytest.mark.real("llama.cpp")
def test_many_clients(proxy):
    """32 clients at once: each gets a full answer."""
    with ThreadPoolExecutor(32) as pool:
        replies = list(
            pool.map(lambda n: post(proxy, seed=n, messages=[{"role": "user", "content": f"Count to {n}."}]), range(32))
        )
    assert [reply.status_code for reply in replies] == [200] * 32
    assert all(reply.json()["choices"][0]["message"]["content"].strip() for reply in replies)
    outcomes = {reply.headers["x-pit"] for reply in replies}
    assert outcomes <= {"improved", "kept"}


@pytest.mark.real("llama.cpp")
def test_an_improver_as_gguf(smol, smol_rows):
    """An exported improver as a GGUF file (convert_hf_to_gguf.py): the text that `pit improve` gives, greedy."""
    file, converter = BUILD / "smol-improver.gguf", engine("gguf").folder / "bin" / "convert-hf-to-gguf"
    run(converter, smol["export"], "--outtype", "f32", "--outfile", file)
    with llama_cpp("llama-cpp-improver", file) as url:
        # llama.cpp does not read generation_config.json, which has the longest answer.
        assert improved(url, "any", smol_rows, max_tokens=16) == proposals(smol_rows)
    with llama_cpp("llama-cpp-base", smol["weights"]) as url:  # so the texts above are those of the adapter
        asked = [{**row, "ask": "Please write a better answer."} for row in smol_rows]
        assert improved(url, "any", asked, max_tokens=16) != proposals(smol_rows)
