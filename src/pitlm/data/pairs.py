"""From one row, in any of the shapes in use, to a Preference.

Three shapes of rows with the fields ``chosen`` and ``rejected`` are read:

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
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Literal

from pitlm.core.nouns import Message, Preference, Role
from pitlm.data.row_fields import RowError, Turns, as_prompt, check_text, describe, list_fields, read_messages

PROMPTS_DIFFER = "prompts differ"

_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_SHAPES = "a string, or a list of messages that ends with the assistant's"

Kind = Literal["text", "transcript", "messages"]


class RowDropped(Exception):
    """A sound row with nothing to learn from; ``reason`` is what it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_preference(data: object) -> Preference:
    """Read one row.

    Raises:
        RowError: a missing field, a value of the wrong type, turns that do not alternate, or a conversation that ends
            on the wrong role.
        RowDropped: the two conversations do not share their prompt.
    """
    if not isinstance(data, Mapping):
        raise RowError(None, describe(data), "an object with the fields chosen and rejected, and mostly prompt")
    for fields, read in SHAPES.items():
        if data.keys() >= fields:
            return read(data)
    return _chosen_and_rejected(data)  # the shape most in use; its message says which field is missing


def _chosen_and_rejected(data: Mapping[str, object]) -> Preference:
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
        prompt = as_prompt(told, "chosen")
    else:
        prompt = as_prompt(_reconciled(stated, told, kind) if told else stated, "prompt")
    return Preference(prompt, chosen[-1].content, rejected[-1].content)


def _stated_prompt(data: Mapping[str, object]) -> tuple[Turns | None, Kind]:
    """The turns of the field ``prompt`` (None where a row has no such field) and the shape of the field."""
    if "prompt" not in data:
        return None, "messages"
    value = data["prompt"]
    kind: Kind = "messages"
    if isinstance(value, str):
        check_text(value, "prompt")
        kind = "transcript" if _opens_transcript(value) else "text"
        turns = _merged(_transcript(value)) if kind == "transcript" else [Message("user", value)]
        if turns[-1] == Message("assistant", ""):
            turns.pop()
    else:
        turns = read_messages(value, "prompt", "a string or a list of messages")
    return list(as_prompt(turns, "prompt").messages), kind


def _side(data: Mapping[str, object], field: str, stated: Turns | None, kind: Kind) -> Turns:
    """The turns that the field holds. The last is the response, and may be the only one."""
    if field not in data:
        raise RowError(field, f"no such field (the row has {list_fields(data)})", _SHAPES)
    value = data[field]
    if isinstance(value, str):
        check_text(value, field)
        if _has_both_speakers(value) and (stated is None or (kind != "messages" and value.startswith("\n\nHuman:"))):
            return _transcript(value)
        if stated is None:
            expected = (
                "a prompt field, or conversations as messages or as '\\n\\nHuman: … \\n\\nAssistant: …' transcripts"
            )
            raise RowError(field, f"{describe(value)} and no field 'prompt' in the row", expected)
        return [Message("assistant", value.strip() if kind == "transcript" else value)]
    turns = read_messages(value, field, _SHAPES)
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
    as_prompt(turns[:-1], field)
    return turns


def _reconciled(stated: Turns, told: Turns, kind: Kind) -> Turns:
    """The longer of two versions of a prompt, the stated one and the conversations', if it has the other at one end."""
    if stated in (told[-len(stated) :], told[: len(stated)]):
        return told
    if stated[-len(told) :] == told:
        return stated
    if kind == "text" and stated[0].content.strip() in [turn.content.strip() for turn in told]:
        return told
    raise RowDropped(PROMPTS_DIFFER)


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


SHAPES: dict[frozenset[str], Callable[[Mapping[str, object]], Preference]] = {
    frozenset({"chosen", "rejected"}): _chosen_and_rejected,
}
"""How a row is read, by the fields that it has. A further shape is a function and a line here."""
