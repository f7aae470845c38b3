"""Improving a file of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Trace
from pitlm.runs.atomic import atomic_writer
from pitlm.text.readers import read_sound_rows


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the input: a prompt, its response where there is one, the row as it was, and where it stands."""

    prompt: Prompt
    response: str | None
    row: Mapping[str, Any]
    where: str


def read_items(path: Path) -> list[Item]:
    """Read rows with ``prompt`` (string or messages) or ``messages``, and an optional ``response``.

    Raises:
        InputError: an unreadable file or row, or no rows, with file and line.
    """
    items = [_item(raw.data, raw.file, raw.line) for raw in read_sound_rows(path)]
    if not items:
        raise InputError.at(path, found="no rows", expected="one JSON object a line, with 'prompt' and 'response'")
    return items


def _item(row: object, file: str, line: int) -> Item:
    if not isinstance(row, Mapping):
        raise InputError.at(
            file, line=line, found=type(row).__name__, expected="an object with 'prompt' and 'response'"
        )
    field = "messages" if "messages" in row and "prompt" not in row else "prompt"
    if field not in row:
        raise InputError.at(file, line=line, field=field, found="nothing", expected="a string or a list of messages")
    try:
        prompt = Prompt.of(row[field])
    except InputError as error:
        raise InputError(f"{file}:{line}: field '{field}': {error}") from error
    response = row.get("response")
    if response is not None and not isinstance(response, str):
        raise InputError.at(file, line=line, field="response", found=type(response).__name__, expected="a string")
    for name, text in ((field, "".join(message.content for message in prompt.messages)), ("response", response or "")):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            found = "half a character (a lone surrogate)"
            raise InputError.at(file, line=line, field=name, found=found, expected="valid Unicode")
    return Item(prompt, response, row, f"{file}:{line}")


def write_traces(path: Path, items: Sequence[Item], traces: Sequence[Trace]) -> None:
    """Write one line per item: the user's own fields, then those of the trace. Whole or not at all.

    The prompt stays in the shape in which it was given. Dates and the like, which parquet has, become strings.
    """
    with atomic_writer(path) as file:
        for item, trace in zip(items, traces, strict=True):
            made = trace.as_dict()
            if "prompt" in item.row or "messages" in item.row:
                del made["prompt"]
            file.write(json.dumps({**item.row, **made}, ensure_ascii=False, default=str) + "\n")
