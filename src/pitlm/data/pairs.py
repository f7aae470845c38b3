"""From one row, in any of the shapes in use, to a Preference.

Three shapes are read:

- an explicit ``prompt`` (a string or chat messages) with ``chosen`` and ``rejected`` as strings or as messages;
- the whole conversation as chat messages in ``chosen`` and ``rejected``, the last turn the assistant's (UltraFeedback;
  a string ``prompt`` beside them repeats what they hold);
- the whole conversation as a transcript ``\\n\\nHuman: ... \\n\\nAssistant: ...`` in each (HH-RLHF), or the part
  before the responses as such a transcript in ``prompt``.

What the two conversations share is the prompt; the last turn is the response. Where they do not share all else, the row
says nothing about one prompt and is dropped, not an error.

Real transcripts are untidy, and this is what happens to them. Space around a turn is removed. Two turns in a row by
the same speaker (a model that wrote the marker itself) become one turn, joined with a blank line, once the two
transcripts are known to agree; where one side goes on past the other, they do not share a prompt. So too where only one
of them goes on to a turn of the human's. Empty responses are kept here: the loader drops and counts them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal

from pitlm.core.nouns import ROLES, Message, Preference, Prompt, Role

PROMPTS_DIFFER = "prompts differ"

_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_SHAPES = "a string, or a list of messages that ends with the assistant's"

Turns = list[Message]
Kind = Literal["text", "transcript", "messages"]


class RowError(ValueError):
    """A row that is not a preference: what field, what was found in it, what was expected."""

    def __init__(self, field: str | None, found: str, expected: str) -> None:
        prefix = f"field '{field}': " if field else ""
        super().__init__(f"{prefix}found {found}, expected {expected}")
        self.field, self.found, self.expected = field, found, expected


class RowDropped(Exception):
    """A sound row with nothing to learn from; ``reason`` is what it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def describe(value: object) -> str:
    """A few words for an error message: the kind of value and at most its first 30 characters."""
    match value:
        case None:
            return "null"
        case str():
            start = value[:30] + ("…" if len(value) > 30 else "")
            return f"a string ({start!r})"
        case bool() | int() | float():
            return f"a {'boolean' if isinstance(value, bool) else 'number'} ({str(value)[:30]})"
        case Mapping():
            return f"an object with the fields {_names(value)}"
        case Sequence():
            return f"a list of {len(value)}"
        case _:
            return f"a value of type {type(value).__name__}"


def parse_preference(data: object) -> Preference:
    """Read one row.

    Raises:
        RowError: a missing field, a value of the wrong type, turns that do not alternate, or a conversation that ends
            on the wrong role.
        RowDropped: the two conversations do not share their prompt.
    """
    if not isinstance(data, Mapping):
        raise RowError(None, describe(data), "an object with the fields chosen and rejected, and mostly prompt")
    stated, kind = _stated_prompt(data)
    chosen, rejected = (_side(data, field, stated, kind) for field in ("chosen", "rejected"))
    overrun = [turns[-1].role == "user" for turns in (chosen, rejected)]
    if all(overrun):
        raise RowError("chosen", "a transcript that ends on 'Human' (user)", "it to end on 'Assistant'")
    if any(overrun) or (len(chosen) > 1 and len(rejected) > 1 and chosen[:-1] != rejected[:-1]):
        raise RowDropped(PROMPTS_DIFFER)
    chosen, rejected = _merged(chosen), _merged(rejected)
    told = chosen[:-1] or rejected[:-1]
    if stated is None:
        prompt = _prompt(told, "chosen")
    else:
        prompt = _prompt(_reconciled(stated, told, kind) if told else stated, "prompt")
    return Preference(prompt, chosen[-1].content, rejected[-1].content)


def _stated_prompt(data: Mapping[str, object]) -> tuple[Turns | None, Kind]:
    """The turns of the field ``prompt`` (None where a row has no such field) and the shape that it had."""
    if "prompt" not in data:
        return None, "messages"
    value = data["prompt"]
    kind: Kind = "messages"
    if isinstance(value, str):
        _check_text(value, "prompt")
        kind = "transcript" if _opens_transcript(value) else "text"
        turns = _merged(_transcript(value)) if kind == "transcript" else [Message("user", value)]
        if turns[-1] == Message("assistant", ""):
            turns.pop()
    else:
        turns = _messages(value, "prompt", "a string or a list of messages")
    return list(_prompt(turns, "prompt").messages), kind


def _side(data: Mapping[str, object], field: str, stated: Turns | None, kind: Kind) -> Turns:
    """One response as the last of the turns that the field holds; alone where it holds no others."""
    if field not in data:
        raise RowError(field, f"no such field (the row has {_names(data)})", _SHAPES)
    value = data[field]
    if isinstance(value, str):
        _check_text(value, field)
        if _has_both_speakers(value) and (stated is None or (kind != "messages" and value.startswith("\n\nHuman:"))):
            return _transcript(value)
        if stated is None:
            expected = (
                "a prompt field, or conversations as messages or as '\\n\\nHuman: … \\n\\nAssistant: …' transcripts"
            )
            raise RowError(field, f"{describe(value)} and no field 'prompt' in the row", expected)
        return [Message("assistant", value.strip() if kind == "transcript" else value)]
    turns = _messages(value, field, _SHAPES)
    if turns[-1].role != "assistant":
        raise RowError(field, f"a conversation that ends on '{turns[-1].role}'", "it to end on 'assistant'")
    if len(turns) == 1:
        if stated is None:
            raise RowError(
                field, "a lone assistant turn and no field 'prompt' in the row", "the turns before it as well"
            )
        return turns
    if stated is not None and turns[0].role == "assistant":
        turns = stated + turns
    _prompt(turns[:-1], field)
    return turns


def _reconciled(stated: Turns, told: Turns, kind: Kind) -> Turns:
    """The longer of the stated prompt and the one that the conversations tell, where it has the other at an end."""
    if stated in (told[-len(stated) :], told[: len(stated)]):
        return told
    if stated[-len(told) :] == told:
        return stated
    if kind == "text" and stated[0].content.strip() in [turn.content.strip() for turn in told]:
        return told
    raise RowDropped(PROMPTS_DIFFER)


def _messages(value: object, field: str, expected: str) -> Turns:
    """Chat messages as turns; roles and contents are checked, the order is not."""
    if not isinstance(value, (list, tuple)):
        raise RowError(field, describe(value), expected)
    if not value:
        raise RowError(field, "an empty list", expected)
    turns = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, Mapping):
            raise RowError(field, f"{describe(item)} as message {number}", "an object with role and content")
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            shown = describe(role) if "role" in item else f"no role (the message has {_names(item)})"
            raise RowError(field, f"{shown} as the role of message {number}", f"one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            shown = describe(content) if "content" in item else "nothing"
            raise RowError(field, f"{shown} as the content of message {number}", "a string")
        _check_text(content, field)
        turns.append(Message(role, content))
    return turns


def _prompt(turns: Turns, field: str) -> Prompt:
    """The turns as a prompt, which alternate and end on the user's."""
    offset = 1 if turns and turns[0].role == "system" else 0
    for index, turn in enumerate(turns[offset:]):
        expected = "user" if index % 2 == 0 else "assistant"
        if turn.role != expected:
            rule = (
                f"'{expected}': the turns of a conversation alternate, the user's first, after an optional system turn"
            )
            raise RowError(field, f"role '{turn.role}' in turn {offset + index + 1}, which does not alternate", rule)
    if turns[-1].role != "user":
        raise RowError(field, f"a conversation in which '{turns[-1].role}' comes last", "'user' before the response")
    return Prompt(tuple(turns))


def _has_both_speakers(text: str) -> bool:
    return set(_MARKER.findall(text)) == set(_SPEAKERS)


def _opens_transcript(prompt: str) -> bool:
    """Whether a string prompt is a transcript: it starts with a marker, or leaves the assistant the last word."""
    return prompt.startswith("\n\nHuman:") or (
        _has_both_speakers(prompt) and prompt.rstrip().endswith("\n\nAssistant:")
    )


def _transcript(text: str) -> Turns:
    """Every turn of a transcript, space around it removed; what stands before the first marker is a system turn."""
    before, *rest = _MARKER.split(text)
    turns = [Message("system", before.strip())] if before.strip() else []
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return turns + [Message(_SPEAKERS[speaker], content.strip()) for speaker, content in pairs]


def _merged(turns: Turns) -> Turns:
    """Turns in a row of one speaker as one turn, joined with a blank line."""
    return [
        Message(role, "\n\n".join(turn.content for turn in run if turn.content))
        for role, run in ((role, list(run)) for role, run in groupby(turns, key=lambda turn: turn.role))
    ]


def _check_text(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(field, f"half a character (a lone surrogate, at {error.start + 1})", "valid Unicode") from error


def _names(row: Mapping[str, object]) -> str:
    names = [str(name)[:30] for name in row]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") if names else "none"
