"""An upstream's answer: the text in it that can be improved, and the answer with another text in its place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pitlm.data.row_fields import is_unicode
from pitlm.serve.error_replies import Headers
from pitlm.serve.live_loop import LiveOutcome

IMPROVABLE_ENDS = ("stop", "length")
BESIDE_TEXT = ("tool_calls", "function_call", "refusal", "audio", "annotations")
"""Parts of a message that belong to its text, or stand in its place."""

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_WORD = re.compile(r"\s*\S+|\s+\Z")


def _obstacle(choice: Any, part: str) -> str:
    """Why a choice's message or delta is not just text; empty where it is."""
    body = choice.get(part) if isinstance(choice, dict) else None
    if not isinstance(body, dict):
        return "not understood"
    beside = next((name for name in BESIDE_TEXT if body.get(name)), "")
    return beside or ("logprobs" if choice.get("logprobs") else "")


def _whole_usage(usage: Any, outcome: LiveOutcome) -> Any:
    """The upstream's usage with the improver's tokens added; None where the upstream did not say."""
    if not isinstance(usage, dict):
        return usage
    spent = {"prompt_tokens": outcome.trace.prompt_tokens, "completion_tokens": outcome.trace.generated_tokens}
    spent["total_tokens"] = sum(spent.values())
    counted = {name: usage[name] for name in spent if isinstance(usage.get(name), int)}
    return {**usage, **{name: counted.get(name, 0) + tokens for name, tokens in spent.items()}}


def report(outcome: LiveOutcome, upstream: Any, *, original: bool) -> dict[str, Any]:
    """The ``pit`` field of a response: outcome, rounds, gaps, stop reason, and who used how many tokens."""
    trace = outcome.trace
    used = {"prompt_tokens": trace.prompt_tokens, "completion_tokens": trace.generated_tokens}
    fields = {
        "outcome": outcome.name,
        "rounds": len(trace.rounds),
        "gaps": list(map(finite, trace.gaps)),
        "stop_reason": str(trace.stop_reason),
        "failure": outcome.failure or None,
        "usage": {"upstream": upstream, "improver": used},
    }
    return {**fields, "original": trace.original} if original else fields


def report_headers(outcome: LiveOutcome) -> Headers:
    """The same in headers, for clients whose library hides unknown fields."""
    fields = report(outcome, None, original=False)
    headers = [(b"x-pit", outcome.name.encode()), (b"x-pit-gaps", json.dumps(fields["gaps"]).encode())]
    for name in ("rounds", "stop_reason", "failure"):
        if fields[name] is not None:
            headers.append((f"x-pit-{name.replace('_', '-')}".encode(), str(fields[name]).encode("ascii", "replace")))
    return headers


def finite(value: float) -> float | None:
    """The number, or None (JSON's null) for one that JSON does not have."""
    return value if math.isfinite(value) else None


class ChatReply:
    """A chat completion in one piece.

    Attributes:
        text: y_0.
        obstacle: why it cannot be improved; empty where it can.
    """

    def __init__(self, content: bytes) -> None:
        self.text = ""
        self.obstacle = "not understood"
        try:
            self.reply = json.loads(content)
            (choice,) = self.reply["choices"]
        except (ValueError, TypeError, LookupError, RecursionError):
            return
        self.obstacle = _obstacle(choice, "message")
        if not self.obstacle and choice.get("finish_reason") not in IMPROVABLE_ENDS:
            self.obstacle = "finish_reason"
        text = choice["message"].get("content") if not self.obstacle else ""
        if not self.obstacle and not (isinstance(text, str) and text.strip() and is_unicode(text)):
            self.obstacle = "no text"
        self.text = "" if self.obstacle else text

    def with_outcome(self, outcome: LiveOutcome, *, original: bool) -> bytes:
        """The reply with the final text, the whole usage and the ``pit`` field."""
        reply, usage = self.reply, self.reply.get("usage")
        if outcome.improved:
            reply["choices"][0]["message"]["content"] = outcome.trace.final
            reply["choices"][0]["finish_reason"] = "stop"
        if usage is not None:
            reply["usage"] = _whole_usage(usage, outcome)
        reply["pit"] = report(outcome, usage, original=original)
        return json.dumps(reply).encode()


async def events(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream into server-sent events, each with the blank line that ends it; joined, they are the stream."""
    rest = b""
    async for part in stream:
        rest += part
        while match := _EVENT_END.search(rest):
            yield rest[: match.end()]
            rest = rest[match.end() :]
    if rest:
        yield rest


class StreamedReply:
    """A chat completion that comes in chunks. Those with text are held back until it is known what becomes of it.

    Whatever comes before the text (the role, a model's reasoning) goes on at once. As soon as something shows that the
    answer cannot be improved, what was held goes on as it came, and everything after it.

    Attributes:
        obstacle: why it cannot be improved; empty as long as it can.
        whole: the answer has come to its end.
    """

    def __init__(self) -> None:
        self.obstacle = ""
        self.whole = False
        self._held: list[tuple[bytes, bool]] = []
        self._parts: list[str] = []
        self._shape: dict[str, Any] = {}
        self._tail: list[tuple[bytes, dict[str, Any]]] = []
        self._done = b""

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def feed(self, event: bytes) -> bytes:
        """Take one event; returns what goes on to the client now."""
        if self.obstacle or not event.lstrip().startswith(b"data:"):
            return event
        data = event.strip()[5:].strip()
        if data == b"[DONE]":
            self._done = event
            return b""
        try:
            chunk = json.loads(data)
            choices = chunk["choices"]
            if self.whole or not choices:
                return self._after(chunk, event)
            (choice,) = choices
        except (ValueError, TypeError, LookupError, RecursionError):
            return self._give_up("not understood", event)
        if obstacle := _obstacle(choice, "delta"):
            return self._give_up(obstacle, event)
        return self._text(chunk, choice, event)

    def _text(self, chunk: dict[str, Any], choice: dict[str, Any], event: bytes) -> bytes:
        text, end = choice["delta"].get("content"), choice.get("finish_reason")
        if (end and end not in IMPROVABLE_ENDS) or not isinstance(text, str | None) or not is_unicode(text or ""):
            return self._give_up("finish_reason" if end else "not understood", event)
        self._shape = self._shape or {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
        if end:
            self.whole = True
            self._tail.append((event, chunk))
        elif text or self._held:
            self._held.append((event, bool(text)))
        self._parts.append(text or "")
        return event if not end and not self._held else b""

    def _after(self, chunk: dict[str, Any], event: bytes) -> bytes:
        if not self.whole:  # before any text: what some servers say about the prompt
            return event
        self._tail.append((event, chunk))
        return b""

    def _give_up(self, obstacle: str, event: bytes) -> bytes:
        self.obstacle = obstacle
        return self.rest() + event

    def rest(self) -> bytes:
        """What is still held, as it came."""
        held = b"".join(event for event, _ in (*self._held, *self._tail)) + self._done
        self._held, self._tail, self._done = [], [], b""
        return held

    def with_outcome(self, outcome: LiveOutcome, *, original: bool) -> Iterator[bytes]:
        """The rest of the stream: the final text, the end with its ``pit`` field, the whole usage if it was there."""
        finish, *tail = (chunk for _, chunk in self._tail)
        usage = next((chunk["usage"] for chunk in (finish, *tail) if chunk.get("usage")), None)
        if outcome.improved:
            yield from (event for event, is_text in self._held if not is_text)
            for word in _WORD.findall(outcome.trace.final):
                choice = {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None}
                yield _event({**self._shape, "choices": [choice]})
            finish["choices"][0] |= {"delta": {}, "finish_reason": "stop"}
        else:
            yield from (event for event, _ in self._held)
        finish["pit"] = report(outcome, usage, original=original)
        for chunk in (finish, *tail):
            if chunk.get("usage"):
                chunk["usage"] = _whole_usage(chunk["usage"], outcome)
            yield _event(chunk)
        yield self._done


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
