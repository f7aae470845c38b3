"""The rows of a batch job as they come in and as they go out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Trace
from pitlm.data.prompt_fields import PROMPT_FIELDS, check_unicode, prompt_in, prompt_text
from pitlm.data.readers import RawRow, Unreadable, read_rows

RESPONSE_FIELDS = ("response", "output")


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the input: a prompt, its response where there is one, the row as it was, and where it stands.

    ``number`` counts the rows from 0.
    """

    number: int
    prompt: Prompt
    response: str | None
    row: Mapping[str, Any]
    where: str

    def improved(self, trace: Trace) -> dict[str, Any]:
        """The user's own fields, then those of the trace; the prompt stays in the shape in which it was given.

        AlpacaEval's ``output`` becomes the final answer, so that the file can be given to it as it is.
        """
        made = trace.as_dict()
        if any(name in self.row for name in PROMPT_FIELDS):
            del made["prompt"]
        if "output" in self.row and "response" not in self.row:
            made["output"] = trace.final
        return {**self.row, **made}


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that could not be improved, why, and the row as it was."""

    number: int
    where: str
    reason: str
    row: object

    def as_dict(self) -> dict[str, Any]:
        return {"where": self.where, "reason": self.reason, "row": self.row}


def read_items(path: Path) -> Iterator[Item | Failure]:
    """Yield one by one the rows of a file, a folder or a hub name.

    A row has its prompt (a string or messages) in ``prompt``, ``messages`` or ``instruction``, and an optional answer
    in ``response`` or ``output``.

    Raises:
        InputError: nothing readable there, a file that is damaged as a whole, or no rows.
    """
    number = -1
    for number, raw in enumerate(read_rows(path)):
        where = f"{raw.file}:{raw.line}"
        try:
            prompt, response, row = _parse(raw)
        except InputError as error:
            found = raw.data.raw if isinstance(raw.data, Unreadable) else raw.data
            yield Failure(number, where, str(error).removeprefix(f"{where}: "), found)
        else:
            yield Item(number, prompt, response, row, where)
    if number < 0:
        raise InputError.at(path, found="no rows", expected="one JSON object a line, with 'prompt' and 'response'")


def count_rows(path: Path) -> int | None:
    """How many rows there are, where a glance tells: lines that are not blank; None elsewhere."""
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return None
    with path.open("rb") as lines:
        return sum(not line.isspace() for line in lines)


def _parse(raw: RawRow) -> tuple[Prompt, str | None, Mapping[str, Any]]:
    row, at = raw.data, partial(InputError.at, raw.file, line=raw.line)
    if isinstance(row, Unreadable):
        raise at(found=row.found, expected=row.expected)
    if not isinstance(row, Mapping):
        raise at(found=type(row).__name__, expected="an object with 'prompt' and 'response'")
    field = next((name for name in PROMPT_FIELDS if name in row), None)
    if field is None:
        raise at(field="prompt", found="nothing", expected="a string or a list of messages")
    prompt = prompt_in(row, field, raw.file, raw.line)
    answer = next((name for name in RESPONSE_FIELDS if row.get(name) is not None), "response")
    response = row.get(answer)
    if response is not None and not isinstance(response, str):
        raise at(field=answer, found=type(response).__name__, expected="a string")
    for name, text in ((field, prompt_text(prompt)), (answer, response or "")):
        check_unicode(text, raw.file, raw.line, name)
    return prompt, response, row
