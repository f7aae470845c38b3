"""However an upstream writes its stream, a client sees what the upstream said or the improved answer, never a mixture."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from pitlm.core.nouns import Prompt, Round, StopReason, Trace
from pitlm.io.event_stream import event_data, events
from pitlm.loop.live_loop import LiveOutcome
from pitlm.serve.chat_completions import ChatReply
from pitlm.serve.proxying import COMMENT

BETTER = "A better answer, in seven short words."
SHAPE = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(delta: dict[str, Any], end: str | None = None, **more: Any) -> str:
    return json.dumps({**SHAPE, "choices": [{"index": 0, "delta": delta, "finish_reason": end}], **more}, indent=1)


ENDS = st.sampled_from(["\n", "\r\n", "\r"])
HARMLESS = st.sampled_from([": ping", ":", "id: 7", "event: message", "retry: 100", "unheard-of: x", "id"])
ODD = st.sampled_from(
    [
        'event: error\ndata: {"error": {"message": "no"}}\n\n',
        "data: not json\n\n",
        "data\n\n",
        "event: message\n\n",
        ": a comment\n\n",
        "\n\n\n",
        "data: " + json.dumps({**SHAPE, "choices": []}) + "\n\n",
        "data: [1]\n\n",
        "data: " + json.dumps(json.loads(chunk({"content": " and more"}))) + "\n\n",
        "data: " + json.dumps(json.loads(chunk({"tool_calls": [{"index": 0}]}))) + "\n\n",
        "data: [DONE]\n\n",
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """A stream in parts: whole or broken off, with comments, fields and line ends of every kind, cut anywhere."""
    words = draw(st.lists(st.sampled_from(["one ", "two ", "né ", "🙂 ", "", "data: "]), max_size=5))
    said = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in words)]
    said += [chunk({"reasoning_content": "hm"}, token_ids=[1])] if draw(st.booleans()) else []
    said += [chunk({}, "stop")]
    said += [json.dumps({**SHAPE, "choices": [], "usage": {"total_tokens": 3}})] if draw(st.booleans()) else []
    said += ["[DONE]"]
    end = draw(ENDS)
    text = draw(st.sampled_from(["", "\ufeff"]))
    for data in said[: draw(st.integers(len(said) - 2, len(said)))]:
        lines = [f"data:{draw(st.sampled_from([' ', '']))}{line}" for line in data.split("\n")]
        for place in draw(st.lists(st.integers(0, len(lines)), max_size=2)):
            lines.insert(place, draw(HARMLESS))
        ends = [draw(ENDS) for _ in lines] if draw(st.integers(0, 5)) == 0 else [end] * len(lines)
        text += "".join(line + stop for line, stop in zip(lines, ends, strict=True)) + ends[-1]
        text += draw(st.just("") | ODD) if draw(st.integers(0, 9)) == 0 else ""
    raw = text.encode()
    raw = raw[: len(raw) - draw(st.integers(0, 3))] if draw(st.integers(0, 5)) == 0 else raw
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    return [raw[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def seen(raw: bytes) -> tuple[str, str]:
    """The text that OpenAI's client reads in a stream, and the exception that it ends in."""
    text = ""
    try:
        for event in SSEDecoder().iter_bytes(iter([raw])):
            if event.data.startswith("[DONE]"):
                break
            data = event.json()
            if data.get("error"):
                return text, "APIError"
            text += "".join(choice["delta"].get("content") or "" for choice in data["choices"])
    except Exception as error:
        return text, type(error).__name__
    return text, ""


async def proxied(parts: list[bytes], *, improve: bool) -> tuple[bytes, ChatReply]:
    """What a client gets for a stream, with a sign of life after every event that is held."""

    async def upstream() -> Any:
        for part in parts:
            yield part

    reply, sent = ChatReply(streamed=True), b""
    async for event in events(upstream()):
        sent += reply.feed(event)
        sent += b"" if reply.obstacle else COMMENT
    if not reply.is_improvable():
        return sent + reply.rest(), reply
    rounds = (Round(BETTER, 1.0, True),) if improve else ()
    outcome = LiveOutcome(Trace(Prompt.of("q"), reply.text, rounds, StopReason.ROUNDS))
    return sent + reply.with_outcome(outcome, original=False), reply


@settings(
    max_examples=int(os.environ.get("PIT_STREAMS", "150")), derandomize="PIT_STREAMS" not in os.environ, deadline=None
)
@given(streams(), st.booleans())
@example([b": ping\ndata: " + chunk({"content": "x"}).replace("\n", "").encode() + b"\n\n"], True)
def test_a_client_sees_the_upstreams_answer_or_the_improved_one(parts, improve):
    sent, reply = asyncio.run(proxied(parts, improve=improve))
    direct = seen(b"".join(parts))
    # Once an event had an id, OpenAI's client breaks off at a comment or a blank line too many, also without the proxy.
    # The events that the proxy writes in their place have neither, so the client may come to its end.
    whole = (BETTER if improve else reply.text) if not reply.obstacle else direct[0]
    assert seen(sent) in (direct, (whole, ""), (whole, direct[1]))
    assert direct[1] or seen(sent) == (whole, "")
    if reply.obstacle:
        assert sent.replace(COMMENT, b"") == b"".join(parts)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_fields_and_comments_around_the_data_are_no_obstacle(end):
    said = [chunk({"content": "a "}), chunk({"content": "b"}), chunk({}, "stop")]
    wrapped = [[": ping", "id: 1", *(f"data: {line}" for line in one.split("\n")), "event: message"] for one in said]
    raw = "".join(end.join([*lines, "", ""]) for lines in [*wrapped, ["data: [DONE]"]]).encode()
    sent, reply = asyncio.run(proxied([bytes([byte]) for byte in raw], improve=True))
    assert (reply.obstacle, reply.text, seen(sent)) == ("", "a b", (BETTER, ""))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\ndata:  b\r\n\r\n", b"a\n b"),
        (b"\xef\xbb\xbf: x\rid: 3\rdata\r\r", b""),
        (b": only a comment\n\n", None),
        (b"data: [DONE]", b"[DONE]"),
    ],
)
def test_the_data_of_an_event(event, data):
    assert event_data(event) == data


@pytest.mark.parametrize("event", [b"id: 3\n\n", b"data: a\n", b"event: error\ndata: a\n\n"])
def test_an_event_that_is_no_plain_data_is_refused(event):
    with pytest.raises(ValueError, match=r".*"):
        event_data(event)
