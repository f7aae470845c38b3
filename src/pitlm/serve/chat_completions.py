"""Chat completions: what a client asked for, and the upstream's answer, whose text may be replaced."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, is_unicode
from pitlm.io.event_stream import event_data
from pitlm.loop.live_loop import Bounds, LiveOutcome
from pitlm.serve.outcomes import pit_field, whole_usage
from pitlm.serve.web import HTTP, ApiError

IMPROVABLE_ENDS = ("stop", "length")
BESIDE_TEXT = ("tool_calls", "function_call", "refusal", "audio", "annotations")
"""Parts of a message that depend on the message's text, or replace the text."""
OF_ANSWER, HARMLESS = frozenset(HTTP["of_answer"]), frozenset(HTTP["harmless"])
"""Fields of an answer that still hold if the text is another one, and fields of a request that such a text obeys."""
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

_WORD = re.compile(r"\s*\S+|\s+\Z")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


CONTROLS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mode": ("'on' or 'off'", lambda value: value in ("on", "off")),
    "rounds": ("a whole number from 1", _is_count),
    "original": ("true or false", lambda value: isinstance(value, bool)),
}
"""The keys of a request's ``pit`` field: the expected value in words, and a check of a value."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A request for a chat completion: the body for the upstream, and the bounds for an improved answer.

    Attributes:
        body: the body for the upstream: the client's own bytes or, if they had a ``pit`` field, JSON without it.
        prompt: x; None if the answer may not be improved.
        obstacle: why the answer may not be improved.
        bounds: limits that an improved answer has to keep.
        original: the client wants y_0 as well.
    """

    body: bytes
    prompt: Prompt | None = None
    obstacle: str = ""
    bounds: Bounds = field(default_factory=Bounds)
    original: bool = False


def read_wish(body: bytes, switch: bytes) -> Wish:
    """Read a request's body and its ``X-Pit`` header.

    A request that is not understood is passed on as it is, for the upstream to judge.

    Raises:
        ApiError: 400 for a wrong ``pit`` field.
    """
    off = switch.strip().lower() == b"off"
    if off and b'"pit"' not in body:
        return Wish(body, obstacle="off")
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return Wish(body, obstacle="not JSON")
    if not isinstance(request, dict):
        return Wish(body, obstacle="not an object")
    control = {}
    if "pit" in request:
        control = _checked_control(request.pop("pit"))
        body = json.dumps(request).encode()
    if obstacle := "off" if off or control.get("mode") == "off" else _obstacle(request):
        return Wish(body, obstacle=obstacle)
    try:
        prompt = _prompt(request.get("messages"))
    except InputError as error:
        return Wish(body, obstacle=f"messages: {str(error).partition(', expected')[0]}")
    return Wish(body, prompt, "", _bounds(request, control.get("rounds")), control.get("original", False))


def _checked_control(control: Any) -> dict[str, Any]:
    """The ``pit`` field of a request, checked.

    Raises:
        ApiError: 400 for a key other than mode, rounds and original, or for a value that makes no sense.
    """

    def wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
        return ApiError(400, code, f"{param}: {message}", param=param)

    if not isinstance(control, dict):
        raise wrong("pit", "expected an object with mode, rounds or original")
    for name, value in control.items():
        if name not in CONTROLS:
            raise wrong(f"pit.{name}", f"unknown; expected {', '.join(CONTROLS)}", "unknown_parameter")
        expected, fits = CONTROLS[name]
        if not fits(value):
            raise wrong(f"pit.{name}", f"found {json.dumps(value)[:40]}, expected {expected}")
    return control


NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "n": lambda value: value == 1,
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), _is_count),
    "response_format": lambda value: value in ({}, {"type": "text"}),
    "modalities": lambda value: value == ["text"],
    **dict.fromkeys(("tool_choice", "function_call"), lambda value: value in ("none", "auto")),
    **dict.fromkeys(("tools", "functions", "logprobs", "top_logprobs", "logit_bias"), lambda value: not value),
}
"""Fields of a request that are harmless with some values."""
REASONS = {*NEUTRAL, *BESIDE_TEXT, *HTTP["reasons"]}
"""Why an answer may go out unchanged, in the metrics. Clients choose the names of other fields."""


def _obstacle(request: Mapping[str, Any]) -> str:
    """The name of a field that an improved text may not obey; empty if the request has no such field."""
    unused = ("tools", "functions") if request.get("tool_choice") == "none" else ()
    for name, value in request.items():
        known = value is None or name in HARMLESS or name in unused
        if not known and (name not in NEUTRAL or not NEUTRAL[name](value)):
            return name
    return ""


def _prompt(messages: Any) -> Prompt:
    """The prompt x from a request's messages.

    A list with one text part counts as this text. A list of several parts is refused, because only the upstream knows
    how it joins them.

    Raises:
        InputError: the improver cannot read this conversation as the upstream does.
    """
    if not isinstance(messages, list):
        raise InputError("no messages")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise InputError(f"a message with role {role!r}")
        if more := next((name for name in message if message[name] and name not in ("role", "content", "name")), None):
            raise InputError("tools" if more == "tool_calls" else more)
        content = message.get("content")
        if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
            content = content[0].get("text") if content[0].get("type") == "text" else None
        if not isinstance(content, str) or not is_unicode(content):
            raise InputError("content other than one text")
        turns.append({"role": role, "content": content})
    return Prompt.of(turns)


def _bounds(request: Mapping[str, Any], rounds: int | None) -> Bounds:
    """The bounds in a request. Values that make no sense set no bound here: the upstream may refuse them."""
    stop, temperature, seed = request.get("stop"), request.get("temperature"), request.get("seed")
    stops = tuple(s for s in (stop if isinstance(stop, list) else [stop]) if isinstance(s, str) and s)
    limits: list[Any] = [request.get("max_tokens"), request.get("max_completion_tokens")]
    longest = min((min(n, 10**9) for n in limits if _is_count(n)), default=None)
    temperature = temperature if isinstance(temperature, int | float) and 0 <= temperature < math.inf else None
    seed = seed if isinstance(seed, int) else None
    rounds = rounds and min(rounds, 10**9)
    return Bounds(stop=stops, max_tokens=longest, temperature=temperature, seed=seed, rounds=rounds)


def _cut(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a completion, a choice or a message that still hold if the text is another one."""
    return {name: value for name, value in whole.items() if name in OF_ANSWER}


def _describes(whole: Mapping[str, Any]) -> bool:
    """Whether a completion, a choice or a message has a field that holds for this text alone."""
    return any(whole[name] for name in whole if name not in OF_ANSWER)


class ChatReply:
    """The upstream's chat completion, in one piece or streamed in chunks.

    Chunks with text are held back until the loop has ended. Chunks before the text (the role, a model's reasoning) go
    to the client at once. When a chunk shows that the answer cannot be improved, the held chunks and all later chunks
    go to the client unchanged.

    Attributes:
        obstacle: why the answer cannot be improved; empty as long as it can.
        text: the part of y_0 that has arrived.
    """

    def __init__(self, *, streamed: bool) -> None:
        self.obstacle = self.text = ""
        self._streamed, self._part = streamed, "delta" if streamed else "message"
        # Events from the first text on, with their chunks (none: a comment), and whether each speaks of this text.
        self._held: list[tuple[bytes, dict[str, Any], bool]] = []
        self._end: int | None = None  # the place of the chunk that ends the answer
        self._shape: dict[str, Any] = {}
        self._done = b""

    def feed(self, event: bytes) -> bytes:
        """Take one event of a stream, or the whole answer. Return the bytes to send to the client now."""
        if self.obstacle:
            return event
        try:
            data = event_data(event) if self._streamed else event
            if self._done or (self._streamed and (data or b"").startswith(b"[DONE]")):
                self._done += event  # clients read no further
                return b""
            chunk = {} if data is None else json.loads(data)
            choices = [] if data is None else chunk["choices"]
            if not choices or self._end is not None:  # comments, usage, and what some servers say of the prompt
                if any(choice[self._part].get("content") for choice in choices):
                    return self._give_up("not understood", event)
                if not self._held:
                    return event
                self._held.append((event, chunk, data is None))
                return b""
            (choice,) = choices
            part = choice[self._part]
            text, end = part.get("content") or "", choice.get("finish_reason")
            of_text = bool(text) or any(map(_describes, (chunk, choice, part)))
        except UNREADABLE:
            return self._give_up("not understood", event)
        obstacles = {name: part.get(name) for name in BESIDE_TEXT}
        obstacles["logprobs"] = choice.get("logprobs")
        obstacles["finish_reason"] = end and end not in IMPROVABLE_ENDS
        obstacles["not understood"] = not isinstance(text, str) or not is_unicode(text)
        if obstacle := next((name for name, is_there in obstacles.items() if is_there), ""):
            return self._give_up(obstacle, event)
        if not (of_text or end or self._held):
            return event
        self.text += text
        self._shape = self._shape or {name: value for name, value in _cut(chunk).items() if name != "usage"}
        self._end = len(self._held) if end else None
        self._held.append((event, chunk, of_text))
        return b""

    def _give_up(self, obstacle: str, event: bytes) -> bytes:
        self.obstacle = obstacle
        return self.rest() + event

    def rest(self) -> bytes:
        """The bytes that are still held, unchanged."""
        held = b"".join(event for event, _, _ in self._held) + self._done
        self._held, self._done = [], b""
        return held

    def is_improvable(self) -> bool:
        """Whether a finished answer has a text to improve; if not, ``obstacle`` says why."""
        if not self.obstacle and (self._end is None or not self.text.strip()):
            self.obstacle = "finish_reason" if self.text.strip() else "no text"
        return not self.obstacle

    def with_outcome(self, outcome: LiveOutcome, *, original: bool) -> bytes:
        """The rest of the answer: the final text, and the end with the ``pit`` field.

        If the upstream sent its usage, this usage now includes the improver's tokens.
        """
        end, *tail = (chunk for _, chunk, _ in self._held[self._end :] if chunk)
        usage = next((chunk["usage"] for chunk in (end, *tail) if chunk.get("usage") is not None), None)
        parts = [event for event, _, of_text in self._held[: self._end] if not (of_text and outcome.improved)]
        if outcome.improved:
            end, *tail = (_cut(end), *(_cut(chunk) | {"choices": []} for chunk in tail))
            choice, final = _cut(end["choices"][0]), outcome.trace.final
            end["choices"], choice["finish_reason"] = [choice], "stop"
            if self._streamed:
                choice["delta"] = {}
                for word in _WORD.findall(final):
                    one = {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None}
                    parts.append(self._encoded({**self._shape, "choices": [one]}))
            else:
                choice["message"] = {**_cut(choice["message"]), "content": final}
        end["pit"] = pit_field(outcome, usage, original=original)
        for chunk in (end, *tail):
            if isinstance(chunk.get("usage"), dict):
                chunk["usage"] = whole_usage(outcome, chunk["usage"])
            parts.append(self._encoded(chunk))
        return b"".join([*parts, self._done])

    def _encoded(self, chunk: dict[str, Any]) -> bytes:
        data = json.dumps(chunk).encode()
        return b"data: " + data + b"\n\n" if self._streamed else data
