"""Rows with a prompt and mostly a response: what a batch job improves, and what judges compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Trace
from pitlm.data.readers import RawRow, read_rows
from pitlm.data.row_fields import (
    PROMPT_FIELDS,
    RESPONSE_FIELDS,
    RowError,
    check_text,
    describe,
    first_field,
    read_prompt,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One row: a prompt, its response where the row has one, the row as it was, and where it stands.

    ``number`` counts the rows of the input from 0.
    """

    number: int
    prompt: Prompt
    response: str | None
    row: Mapping[str, Any]
    where: str

    @property
    def id(self) -> str | None:
        """The field ``id`` as text; None where the row has none, or an empty one."""
        value = self.row.get("id")
        return None if value is None or value == "" else str(value)

    def improved(self, trace: Trace) -> dict[str, Any]:
        """The user's own fields, then those of the trace; the prompt stays in the shape in which it was given.

        AlpacaEval's ``output`` becomes the final answer, so that the file can be given to AlpacaEval as it is.
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


def parse_item(raw: RawRow, number: int, answer_fields: Sequence[str] = RESPONSE_FIELDS) -> Item:
    """Read one row, with its prompt (a string or messages) in ``prompt``, ``messages`` or ``instruction``.

    Args:
        answer_fields: where the response may be; the first that holds something counts.

    Raises:
        RowError: a row that could not be decoded, no prompt, or a prompt or response of another type.
    """
    row = raw.value()
    if not isinstance(row, Mapping):
        raise RowError(None, describe(row), "an object with 'prompt' and 'response'")
    asked = first_field(row, PROMPT_FIELDS)
    prompt = read_prompt(row[asked], asked)
    answered = next((name for name in answer_fields if row.get(name) is not None), None)
    response = None if answered is None else check_text(row[answered], answered)
    return Item(number, prompt, response, row, raw.where)


def read_items(path: Path) -> Iterator[Item | Failure]:
    """Yield one by one the rows of a file, a folder or a hub name, as :func:`parse_item` reads them.

    Raises:
        InputError: nothing readable there, a file that is damaged as a whole, or no rows.
    """
    number = -1
    for number, raw in enumerate(read_rows(path)):
        try:
            yield parse_item(raw, number)
        except RowError as error:
            yield Failure(number, raw.where, str(error), raw.raw)
    if number < 0:
        raise InputError.at(path, found="no rows", expected="one JSON object a line, with 'prompt' and 'response'")


def count_rows(path: Path) -> int | None:
    """How many rows there are, where a glance tells: lines that are not blank; None elsewhere."""
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return None
    with path.open("rb") as lines:
        return sum(not line.isspace() for line in lines)
