"""What a client asks of a chat completion, and whether its answer can be improved without breaking a promise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Message, Prompt
from pitlm.data.row_fields import is_unicode
from pitlm.serve.error_replies import ApiError
from pitlm.serve.live_loop import Bounds


@dataclass(frozen=True, slots=True)
class Wish:
    """One request for a chat completion, as far as improving its answer goes.

    Attributes:
        body: what the upstream is sent: the client's own bytes, unless they held a ``pit`` field.
        prompt: x, where the answer may be improved.
        obstacle: why it may not, where it may not.
        bounds: what an improved answer has to keep.
        original: the client wants y_0 as well.
    """

    body: bytes
    prompt: Prompt | None = None
    obstacle: str = ""
    bounds: Bounds = field(default_factory=Bounds)
    original: bool = False


def read_wish(body: bytes, switch: bytes) -> Wish:
    """Read a request's body and its ``X-Pit`` header.

    What is not understood is the upstream's to judge: it is passed on as it is.

    Raises:
        ApiError: 400, a ``pit`` field that is wrong.
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
    return Wish(body, prompt, bounds=_bounds(request, control.get("rounds")), original=control.get("original", False))


def _bounds(request: Mapping[str, Any], rounds: int | None) -> Bounds:
    """What the client asked for; values that make no sense are the upstream's to refuse."""
    stop, temperature, seed = request.get("stop"), request.get("temperature"), request.get("seed")
    stops = [stop] if isinstance(stop, str) else stop
    limits: list[Any] = [request.get("max_tokens"), request.get("max_completion_tokens")]
    return Bounds(
        stop=tuple(s for s in stops if isinstance(s, str) and s) if isinstance(stops, list) else (),
        max_tokens=min((n for n in limits if _is_count(n)), default=None),
        temperature=temperature if isinstance(temperature, int | float) and temperature >= 0 else None,
        seed=seed if isinstance(seed, int) else None,
        rounds=rounds,
    )


def _checked_control(control: Any) -> dict[str, Any]:
    """The ``pit`` field of a request, checked.

    Raises:
        ApiError: 400, something else than mode, rounds and original, or a value that makes no sense.
    """
    expected: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "mode": ("'on' or 'off'", lambda value: value in ("on", "off")),
        "rounds": ("a whole number from 1", _is_count),
        "original": ("true or false", lambda value: isinstance(value, bool)),
    }
    if not isinstance(control, dict):
        raise ApiError(400, "invalid_value", "pit: expected an object with mode, rounds or original", param="pit")
    for name, value in control.items():
        if name not in expected:
            message = f"pit.{name}: unknown; expected {', '.join(expected)}"
            raise ApiError(400, "unknown_parameter", message, param=f"pit.{name}")
        wanted, fits = expected[name]
        if not fits(value):
            message = f"pit.{name}: found {json.dumps(value)[:40]}, expected {wanted}"
            raise ApiError(400, "invalid_value", message, param=f"pit.{name}")
    return control


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _obstacle(request: Mapping[str, Any]) -> str:
    """What the client asked for that an improved text could not keep; empty where there is nothing."""
    response_format = request.get("response_format")
    asked = {
        "n": request.get("n") not in (None, 1),
        "tools": bool(request.get("tools") or request.get("functions")) and request.get("tool_choice") != "none",
        "response_format": bool(response_format) and response_format != {"type": "text"},
        "logprobs": bool(request.get("logprobs")),
        "logit_bias": bool(request.get("logit_bias")),
        "modalities": request.get("modalities") not in (None, ["text"]),
    }
    return next((name for name, is_asked in asked.items() if is_asked), "")


def _prompt(messages: Any) -> Prompt:
    """x of a request's messages; OpenAI's newer name of the system role, ``developer``, is read as it.

    Raises:
        InputError: a conversation that the improver cannot be shown as it is.
    """
    if not isinstance(messages, list):
        raise InputError("no messages")
    return Prompt.of([Message(_role(m), _text(m)) for m in messages])  # type: ignore[arg-type]


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("system", "developer", "user", "assistant") or message.get("tool_calls"):
        raise InputError(f"a message with role {role!r}" if role != "assistant" else "tools")
    return "system" if role == "developer" else str(role)


def _text(message: Mapping[str, Any]) -> str:
    """A message's text. One text part is a text; how several were to be joined, only the upstream knows."""
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0].get("text") if content[0].get("type") == "text" else None
    if not isinstance(content, str) or not is_unicode(content):
        raise InputError("content other than one text")
    return content
