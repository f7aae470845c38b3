"""The proxy as the official client sees it: only ``base_url`` changes."""

from __future__ import annotations

import asyncio
import json
import re
import time

import httpx
import openai
import pytest
from proxies import HTTP
from scripted_models import Judge
from scripted_upstream import ERRORS, TEXT, USAGE

from pitlm.core.nouns import Prompt
from pitlm.serve.chat_completions import REASONS

ASK = [{"role": "user", "content": "2 + 2 ?"}]
TALK = [
    {"role": "developer", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {"role": "assistant", "content": "Hello."},
    *ASK,
]
BEST = f"{TEXT} Better Better"


def create(client, **request):
    return client.chat.completions.create(**{"model": "chat", "messages": ASK, **request})


def post(url, headers=None, **request):
    body = json.dumps({"model": "chat", "messages": ASK, **request}).encode()
    return HTTP.post(f"{url}/chat/completions", content=body, headers={"authorization": "Bearer k", **(headers or {})})


def joined(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_the_answer_is_the_last_accepted_and_the_usage_is_that_of_both(proxy):
    made = create(proxy.client(), extra_body={"pit": {"original": True}})
    assert made.choices[0].message.content == BEST
    assert made.choices[0].finish_reason == "stop"
    assert (made.id, made.system_fingerprint) == ("chatcmpl-1", "fp_1")
    # Three proposals with 3 tokens written and 10 read each, plus the upstream's 5 and 7.
    assert (made.usage.completion_tokens, made.usage.prompt_tokens, made.usage.total_tokens) == (14, 37, 51)
    assert made.pit == {
        "outcome": "improved",
        "rounds": 3,
        "gaps": [1.0, 1.0, -1.0],
        "stop_reason": "accepted-none",
        "failure": None,
        "usage": {"upstream": USAGE, "improver": {"prompt_tokens": 30, "completion_tokens": 9}},
        "original": TEXT,
    }


def test_headers_say_what_happened(proxy):
    headers = post(proxy.url).headers
    assert headers["x-pit"] == "improved"
    assert (headers["x-pit-rounds"], headers["x-pit-gaps"]) == ("3", "[1.0, 1.0, -1.0]")
    assert headers["x-pit-stop-reason"] == "accepted-none"
    assert (headers["x-request-id"], headers["set-cookie"]) == ("req_1", "a=b")


def test_the_upstream_gets_the_clients_own_bytes_and_headers(proxy):
    body = b'{ "model":"chat",  "messages":[{"role":"user","content":"\\u00e9"}], "top_p": 0.5, "unheard_of": [1, {"a": null}] }'
    headers = {"authorization": "Bearer sk-mine", "openai-organization": "org", "cookie": "c=1", "x-pit": "on"}
    HTTP.post(f"{proxy.url}/chat/completions?api-version=1", content=body, headers=headers)
    (request,) = proxy.upstream.requests
    assert request["body"] == body
    assert request["query"] == "api-version=1"
    assert request["headers"]["authorization"] == "Bearer sk-mine"
    assert (request["headers"]["openai-organization"], request["headers"]["cookie"]) == ("org", "c=1")
    assert request["headers"]["host"] == proxy.direct.split("/")[2]
    assert "x-pit" not in request["headers"]
    # The proxy never sends one answer's cookie with another client's request.
    HTTP.cookies.clear()
    post(proxy.url)
    assert "cookie" not in proxy.upstream.requests[1]["headers"]


def test_a_pit_field_is_the_only_thing_that_the_upstream_does_not_get(proxy):
    request = {"model": "chat", "messages": TALK, "seed": 2**63, "temperature": 0.1, "metadata": {"say": "né 🙂"}}
    create(proxy.client(), **request, extra_body={"pit": {"rounds": 1}})
    assert json.loads(proxy.upstream.requests[0]["body"]) == request


def test_the_improver_is_shown_the_whole_conversation(proxy):
    create(proxy.client(), messages=TALK)
    expected = [("system", "Be short."), ("user", "Hello"), ("assistant", "Hello."), ("user", "2 + 2 ?")]
    assert [(m.role, m.content) for m in proxy.writer.asked[0]["prompt"].messages] == expected
    assert [asked["reference"] for asked in proxy.writer.asked] == [TEXT, f"{TEXT} Better", BEST]


def test_parameters_hold_for_the_improver_too(proxy):
    made = create(proxy.client(), temperature=0, seed=11, max_tokens=50, extra_body={"pit": {"rounds": 2}})
    wanted = [(asked["temperature"], asked["seed"], asked["max_tokens"]) for asked in proxy.writer.asked]
    assert wanted == [(0, 11, 50), (0, 12, 50)]
    assert made.pit["stop_reason"] == "rounds"
    proxy.writer.suffix = " Better. STOP more"
    assert create(proxy.client(), stop=["STOP"]).choices[0].message.content == f"{TEXT} Better. Better."
    proxy.writer.tokens = 4
    too_long = create(proxy.client(), max_completion_tokens=3)
    assert (too_long.choices[0].message.content, too_long.pit["gaps"]) == (TEXT, [None])


def test_the_asynchronous_client(proxy):
    async def main():
        async with proxy.asynchronous() as client:
            whole, stream = await asyncio.gather(create(client), create(client, stream=True))
            return whole.choices[0].message.content, joined([chunk async for chunk in stream])

    assert asyncio.run(main()) == (BEST, BEST)


def test_a_stream_is_the_improved_answer_in_many_chunks(proxy):
    chunks = list(create(proxy.client(), stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == BEST
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) == 7
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "stop"]
    assert chunks[-2].pit["outcome"] == "improved"
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 51)
    assert {chunk.id for chunk in chunks} == {"chatcmpl-1"}


def test_usage_is_streamed_only_if_it_was_asked_for(proxy):
    chunks = list(create(proxy.client(), stream=True))
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].pit["usage"]["upstream"] is None


def test_a_kept_answer_streams_as_the_upstream_made_it(proxy):
    vars(proxy.judge).update(vars(Judge(likes=0)))
    ours, theirs = (list(create(client, stream=True)) for client in (proxy.client(), proxy.straight()))
    assert ours.pop().pit["outcome"] == "kept"
    assert ours == theirs[:-1]


def test_reasoning_goes_on_at_once_and_stays_in_front(proxy):
    chunks = list(create(proxy.client(), model="reasoning", stream=True))
    assert chunks[1].choices[0].delta.reasoning_content == "two and two"
    assert joined(chunks) == BEST


def test_comments_keep_a_waiting_stream_open(proxy):
    proxy.writer.seconds = 0.3
    lines = post(proxy.url, stream=True).text.splitlines()
    assert ": pit" in lines
    assert lines[-2:] == ["data: [DONE]", ""]


UNTOUCHED = {
    "tools": {"tools": [{"type": "function", "function": {"name": "add"}}]},
    "n": {"n": 2},
    "response_format": {"response_format": {"type": "json_object"}},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "logit_bias": {"logit_bias": {"7": -100}},
    "modalities": {"modalities": ["text", "audio"]},
    "max_tokens": {"max_tokens": 0},
    "max_completion_tokens": {"max_completion_tokens": 0},
    **{name: {name: ["x"]} for name in ("guided_choice", "guided_json", "structured_outputs", "grammar", "documents")},
    "messages: function_call": {
        "messages": [*ASK, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}, *ASK]
    },
    "messages: content other than one text": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    },
    "messages: a message with role 'tool'": {"messages": [*ASK, {"role": "tool", "tool_call_id": "1", "content": "4"}]},
    "messages: tools": {"messages": [*ASK, {"role": "assistant", "content": "x", "tool_calls": [{}]}, *ASK]},
    "messages: prompt: found role 'user' in turn 2": {"messages": [*ASK, *ASK]},
    "tool_calls": {"model": "tools"},
    "finish_reason": {"model": "filtered"},
    "not understood": {"model": "nonsense"},
    "no text": {"metadata": {"say": " "}},
    "off": {"pit": {"mode": "off"}},
    "upstream's answer": {"model": "bad"},
}


@pytest.mark.parametrize("reason", UNTOUCHED)
def test_what_cannot_be_improved_is_passed_untouched_and_says_so(proxy, reason):
    request = UNTOUCHED[reason]
    ours, theirs = post(proxy.url, **request), post(proxy.direct, **request)
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    assert (ours.headers["x-pit"], ours.headers["x-pit-reason"]) == ("passed", reason)
    assert proxy.writer.asked == []
    streams = [post(url, **request, stream=True).content.replace(b": pit\n", b"") for url in (proxy.url, proxy.direct)]
    assert streams[0] == streams[1]


def test_several_text_parts_reach_the_upstream_as_they_are(proxy):
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    create(proxy.client(), messages=messages)
    assert json.loads(proxy.upstream.requests[0]["body"])["messages"] == messages
    assert proxy.writer.asked == []


def test_tools_that_may_not_be_called_are_no_obstacle(proxy):
    made = create(
        proxy.client(), tools=UNTOUCHED["tools"]["tools"], tool_choice="none", response_format={"type": "text"}
    )
    assert made.pit["outcome"] == "improved"


def test_a_header_switches_it_off(proxy):
    assert post(proxy.url, {"x-pit": "off"}).content == post(proxy.direct).content
    assert post(proxy.url, {"x-pit": "off"}, pit={}).content == post(proxy.direct).content
    assert all(b"pit" not in request["body"] for request in proxy.upstream.requests)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"round": 2}, "pit.round: unknown; expected mode, rounds, original"),
        ({"rounds": 0}, "pit.rounds: found 0, expected a whole number from 1"),
        ({"mode": "fast"}, "pit.mode: found \"fast\", expected 'on' or 'off'"),
        ([], "pit: expected an object"),
    ],
)
def test_a_wrong_pit_field_is_a_bad_request(proxy, field, message):
    with pytest.raises(openai.BadRequestError) as caught:
        create(proxy.client(), extra_body={"pit": field})
    assert caught.value.body["message"].startswith(message)
    assert caught.value.param.startswith("pit")
    assert proxy.upstream.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_describe_the_first_answer_go_with_it(proxy, stream):
    """An upstream's token ids and citations belong to its text, and would belie the improved text."""
    made = post(proxy.url, model="described", stream=stream)
    assert b"Better" in made.content
    for field in (b'"token_ids"', b'"citations"', b'"stop_reason": 7'):
        assert field not in made.content
    vars(proxy.judge).update(vars(Judge(likes=0)))
    assert b"citations" in post(proxy.url, model="described", stream=stream).content


@pytest.mark.parametrize("model", ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_keep_status_shape_and_headers(proxy, model, stream):
    caught = []
    for client in (proxy.client(), proxy.straight()):
        with pytest.raises(openai.APIStatusError) as error:
            create(client, model=model, stream=stream)
        caught.append(error.value)
    ours, theirs = caught
    assert type(ours) is type(theirs)
    assert (ours.status_code, ours.body, ours.request_id) == (theirs.status_code, theirs.body, "req_1")
    assert ours.response.headers["retry-after"] == "7"


def test_what_is_no_json_is_the_upstreams_to_refuse(proxy):
    for body in (b"{", b"[1]", b"\xff", b"[" * 100_000):
        ours, theirs = (HTTP.post(f"{url}/chat/completions", content=body) for url in (proxy.url, proxy.direct))
        assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)


@pytest.mark.parametrize("odd", [{"stop": 7}, {"stop": [None, ""]}, {"seed": "x"}, {"temperature": "hot"}])
def test_parameters_that_make_no_sense_are_the_upstreams_to_refuse(proxy, odd):
    assert post(proxy.url, **odd).json()["pit"]["outcome"] == "improved"  # this upstream refuses no key
    assert json.loads(proxy.upstream.requests[0]["body"])[next(iter(odd))] == next(iter(odd.values()))


def test_usage_that_makes_no_sense_is_left_out_of_the_sum(proxy):
    usage = {"prompt_tokens": None, "completion_tokens": "many", "extra": {"cached": 1}}
    made = post(proxy.url, metadata={"usage": usage}).json()
    assert made["usage"] == {"prompt_tokens": 30, "completion_tokens": 9, "total_tokens": 39, "extra": {"cached": 1}}
    assert made["pit"]["usage"]["upstream"] == usage


def test_an_answer_that_breaks_off_is_a_bad_gateway(proxy):
    with pytest.raises(openai.InternalServerError) as caught:
        create(proxy.client(), model="cut")
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")
    assert "RemoteProtocolError" in caught.value.body["message"]


@pytest.mark.parametrize("more", [{}, {"logprobs": True}])
def test_a_stream_that_breaks_off_breaks_off_after_the_same_text(proxy, more):
    got = {}
    for client in (proxy.client(), proxy.straight()):
        chunks = got.setdefault(str(client.base_url), [])
        with pytest.raises(Exception, match=r"incomplete|Connection error"):
            chunks.extend(create(client, model="cut", stream=True, **more))
    for url in (proxy.url, proxy.direct):
        with HTTP.stream(
            "POST", f"{url}/chat/completions", json={"model": "cut", "messages": ASK, "stream": True, **more}
        ) as response:
            parts = got.setdefault(url, [])
            with pytest.raises(httpx.RemoteProtocolError):
                parts.extend(response.iter_raw())
    assert b"".join(got[proxy.url]).replace(b": pit\n", b"") == b"".join(got[proxy.direct])


def wait_for(condition):
    while not condition():  # the time limit of every test ends this
        time.sleep(0.01)


def test_a_client_that_times_out_ends_the_upstreams_work(proxy):
    seconds = 0.2
    while not proxy.upstream.requests:  # on a busy machine the client may give up first
        with pytest.raises(openai.APITimeoutError):
            create(proxy.client(timeout=seconds), model="stall")
        seconds *= 2
    wait_for(lambda: proxy.upstream.cancelled == len(proxy.upstream.requests))


def test_a_cancelled_request_ends_the_upstreams_work(proxy):
    async def main():
        async with proxy.asynchronous() as client:
            task = asyncio.ensure_future(create(client, model="stall"))
            while not proxy.upstream.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    wait_for(lambda: proxy.upstream.cancelled == 1)


def test_a_stream_that_is_closed_ends_the_improvement(proxy):
    proxy.writer.seconds = 3600.0
    cancelled = []
    propose = type(proxy.writer).propose

    async def watched(*args, **kwargs):
        try:
            return await propose(proxy.writer, *args, **kwargs)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    proxy.writer.propose = watched
    try:
        with create(proxy.client(), stream=True) as stream:
            next(iter(stream))
            wait_for(lambda: proxy.writer.asked)
        wait_for(lambda: cancelled)
    finally:
        del proxy.writer.propose


@pytest.mark.parametrize("stream", [False, True])
def test_models_that_fail_leave_the_upstreams_answer_marked_so(proxy, stream):
    proxy.judge.failure = "the gap model is gone"
    made = create(proxy.client(), stream=stream)
    if stream:
        chunks = list(made)
        assert joined(chunks) == TEXT
        pit = chunks[-1].pit
    else:
        assert (made.choices[0].message.content, made.choices[0].finish_reason) == (TEXT, "stop")
        pit = made.pit
    assert (pit["outcome"], pit["failure"], pit["stop_reason"]) == ("failed-open", "the gap model is gone", "cancelled")


def test_other_paths_are_passed_through(proxy):
    assert [model.id for model in proxy.client().models.list()] == ["chat"]
    made = proxy.client().completions.create(model="chat", prompt="x")
    assert made.id == "chatcmpl-1"
    with pytest.raises(openai.NotFoundError) as caught:
        proxy.client().embeddings.create(model="chat", input="x")
    assert caught.value.body["message"] == "no such path"
    assert proxy.upstream.requests[-1]["path"] == "/v1/embeddings"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1/x/..%2f..%2fadmin",
        "/v1/x%5c..%5cadmin",
        "/v1/.",
        "/v%31/models",
        "/v1%2fmodels",
        "/v1%2fx@127.0.0.1:9/y",  # joined as text, this is another host's path
        "/v1%2f/models",
        f"/v1/{'x' * 9_000}",
    ],
)
def test_no_path_leads_out_of_the_api(proxy, path):
    host, port = proxy.url.split("/")[2].split(":")

    async def raw():
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode())
        return await reader.read()

    assert asyncio.run(raw()).startswith(b"HTTP/1.1 404")
    assert proxy.upstream.requests == []


def test_score_and_improve(proxy):
    body = {"prompt": "2 + 2 ?", "reference": "4", "response": "4 Better"}
    assert HTTP.post(f"{proxy.url}/score", json=body).json() == {"gap": 1.0}
    assert HTTP.get(f"{proxy.url}/score").json() == {"margin": 0.5}
    trace = HTTP.post(f"{proxy.url}/improve", json={"prompt": ASK, "response": "4", "rounds": 1, "seed": 3}).json()
    assert (trace["final"], trace["original"], trace["stop_reason"]) == ("4 Better", "4", "rounds")
    assert trace["rounds"] == [{"proposal": "4 Better", "gap": 1.0, "accepted": True, "tokens": 3, "prompt_tokens": 10}]
    assert proxy.writer.asked[0]["prompt"] == Prompt.of("2 + 2 ?")


def test_improve_keeps_what_the_response_was_asked_for_with(proxy):
    body = {"prompt": "x", "response": "4", "stop": ["tter"], "temperature": 0.1, "rounds": 1}
    assert HTTP.post(f"{proxy.url}/improve", json=body).json()["final"] == "4 Be"
    assert proxy.writer.asked[0]["temperature"] == 0.1
    reply = HTTP.post(f"{proxy.url}/improve", json={"prompt": "x", "response": "4", "max_tokens": 2}).json()
    assert (reply["final"], reply["rounds"][0]["gap"]) == ("4", None)  # the proposal has 3


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": "x"}, 400, "response: Field required"),
        ({"prompt": "x", "response": "y", "stop": [""]}, 400, "stop.0: String should have at least 1 character"),
        ({"prompt": [], "response": "y"}, 400, "prompt: found no user turn"),
        ({"prompt": "x", "response": "y", "round": 1}, 400, "round: Extra inputs"),
        ({"prompt": "\ud800", "response": "y"}, 400, "prompt: found half a character"),
        ({"prompt": [{"role": "user", "content": "\ud800"}], "response": "y"}, 400, "prompt: found half a character"),
        ({"prompt": "x", "response": "\ud800"}, 400, "response: Input should be a valid string"),
    ],
)
def test_errors_of_our_own_paths_have_the_same_shape(proxy, body, status, message):
    reply = HTTP.post(f"{proxy.url}/improve", content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert reply.json()["error"]["message"].startswith(message)


def test_half_a_character_is_the_clients_fault(proxy):
    good = {"prompt": "x", "reference": "y", "response": "z"}
    label = {"prompt": "x", "reference": "y"}
    reward = {"query": ["x z"], "prompts": ["x"], "labels": [label]}
    bad = [("score", {**good, name: "\ud800"}, name) for name in good]
    for change, name in (
        ({"query": ["x \ud800"]}, "query"),
        ({"labels": [{**label, "reference": "\ud800"}]}, "labels.0"),
        ({"labels": [json.dumps({**label, "reference": "\ud800"})]}, "labels.0"),
        ({"labels": [{**label, "prompt": "\ud800"}]}, "labels.0"),
    ):
        bad.append(("../get_reward", {**reward, **change}, name))
    for path, body, name in bad:
        text = json.dumps(body)
        reply = HTTP.post(f"{proxy.url}/{path}", content=text, headers={"content-type": "application/json"})
        assert reply.status_code == 400, text
        assert reply.json()["error"]["message"].startswith(name)


def test_improve_says_when_the_models_are_not_there(proxy):
    proxy.writer.failure = "the improver is gone"
    reply = HTTP.post(f"{proxy.url}/improve", json={"prompt": "x", "response": "y"})
    assert (reply.status_code, reply.json()["error"]["message"]) == (503, "the improver is gone")


def test_health_and_metrics(proxy):
    create(proxy.client())
    root = proxy.url.removesuffix("/v1")
    assert HTTP.get(f"{root}/healthz").json()["status"] == "ok"
    text = HTTP.get(f"{root}/metrics").text
    for line in (
        'pit_requests_total{outcome="improved",reason=""}',
        "pit_requests_inside 0.0",
        'pit_gap_bucket{le="1.0"}',
    ):
        assert line in text


def test_a_bound_that_is_larger_than_any_answer_is_no_bound(proxy):
    for limit in ({"max_tokens": 2**31 - 1}, {"max_completion_tokens": 10**12}):
        assert create(proxy.client(), **limit).pit["outcome"] == "improved"
    assert create(proxy.client(), extra_body={"pit": {"rounds": 2 * 10**9}}).pit["outcome"] == "improved"


def test_the_name_of_a_field_breaks_no_header_and_is_no_label(proxy):
    for name in ("a\nb", " x", "y ", "tool\r\nX: y"):
        ours, theirs = post(proxy.url, **{name: 1}), post(proxy.direct, **{name: 1})
        assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
        assert ours.headers["x-pit"] == "passed"
    shown = HTTP.get(f"{proxy.url.removesuffix('/v1')}/metrics").text
    reasons = set(re.findall(r'pit_requests_total{outcome="passed",reason="([^"]*)"}', shown))
    assert "another field" in reasons
    assert reasons - {"another field"} <= REASONS
