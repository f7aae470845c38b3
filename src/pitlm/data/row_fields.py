"""The fields of one row of data: their names, how text and messages are read, and the error that names a field."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pitlm.core.errors import ConversationError, describe
from pitlm.core.nouns import HALF, Message, Prompt, is_unicode

PROMPT_FIELDS = ("prompt", "messages", "instruction")
"""Fields that may have the prompt of a row; ``instruction`` is AlpacaEval's."""

RESPONSE_FIELDS = ("response", "output")
"""Fields that may have the response to improve; ``output`` is AlpacaEval's."""

IMPROVED = "pit"
"""The field in which `pit improve` writes all that it adds to a row; its ``final`` is then the row's answer."""

NOT_READ_IN_ROWS = ("tools", "images", "image", "videos", "audio", "documents")
"""Fields of a row that belong to its prompt beside the text. A row in which one of them holds something is refused."""

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""The roles of the speakers in ``from`` of a message with ``from`` and ``value`` (ShareGPT)."""

_PRINTED = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")

Turns = list[Message]


class RowError(ValueError):
    """A row that cannot be used: which field, what was found in it, what was expected."""

    def __init__(self, field: str | None, found: str, expected: str) -> None:
        prefix = f"field '{field}': " if field else ""
        super().__init__(f"{prefix}found {found}, expected {expected}")
        self.field, self.found, self.expected = field, found, expected


def asked_field(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any] | None:
    """The first of the fields that holds something, and its value; None if no field does.

    An ``instruction`` is followed by the row's ``input``, as in Alpaca's data.

    Raises:
        RowError: something beside text belongs to the prompt of the row.
    """
    if (lost := next((name for name in NOT_READ_IN_ROWS if row.get(name)), None)) is not None:
        raise RowError(lost, describe(row[lost]), "nothing: only text is read, and this would be lost")
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        return None
    value, more = row[name], row.get("input")
    if name == "instruction" and isinstance(value, str) and more not in (None, ""):
        value = f"{value}\n\n{check_text(more, 'input')}"
    return name, value


def with_system(prompt: Prompt, system: object) -> Prompt:
    """The prompt with the text of the row's field ``system`` as its system turn; an empty text is none.

    Raises:
        RowError: the field is no text, or the prompt has another system turn.
    """
    if system in (None, ""):
        return prompt
    turn, first = Message("system", check_text(system, "system")), prompt.messages[0]
    if first.role == "system":
        if first != turn:
            raise RowError("system", describe(system), "the system turn of the prompt, or none")
        return prompt
    return Prompt((turn, *prompt.messages))


def decoded(field: str, value: object) -> object:
    """Chat messages that were written as text, by JSON or as Python or numpy prints them; another value unchanged.

    Raises:
        RowError: a text that begins as such messages do, and is none.
    """
    if not isinstance(value, str) or not _PRINTED.match(value):
        return value
    # numpy prints no comma between the messages. A line feed of a content is printed as \\n, so it is not meant here.
    for read, text in ((json.loads, value), (ast.literal_eval, re.sub(r"\}\n\s*\{", "}, {", value.strip()))):
        try:
            found = read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and all(isinstance(item, dict) for item in found):
            return found
    expected = "messages, or JSON of them; JSON Lines and parquet keep messages whole"
    raise RowError(field, "messages written as text, which cannot be decoded", expected)


def check_text(value: object, field: str | None, expected: str = "a string") -> str:
    """Return a value that is text and can be written to a file.

    Raises:
        RowError: the value is no text, or has a lone surrogate.
    """
    if not isinstance(value, str):
        raise RowError(field, describe(value), expected)
    if not is_unicode(value):
        raise RowError(field, HALF, "valid Unicode")
    return value


def read_messages(value: object, field: str, expected: str) -> Turns:
    """Read chat messages. Roles and contents are checked, the order is not.

    Raises:
        RowError: the value is no list of messages, or a message has a fault.
    """
    if not isinstance(value, (list, tuple)):
        raise RowError(field, describe(value), expected)
    if not value:
        raise RowError(field, "an empty list", expected)
    try:
        return [Message.of(_with_role(item), number) for number, item in enumerate(value, start=1)]
    except ConversationError as error:
        raise RowError(field, error.found, error.expected) from error


def _with_role(item: object) -> object:
    """A message with ``from`` and ``value`` as one with ``role`` and ``content``."""
    if not isinstance(item, Mapping) or "role" in item or not {"from", "value"} <= item.keys():
        return item
    return {**item, "role": SPEAKERS.get(str(item["from"]), item["from"]), "content": item["value"]}


def as_prompt(turns: Turns, field: str) -> Prompt:
    """Return the turns as a prompt.

    Raises:
        RowError: turns that do not alternate, or that do not end on the user's.
    """
    try:
        return Prompt(tuple(turns))
    except ConversationError as error:
        raise RowError(field, error.found, error.expected) from error


def read_prompt(value: object, field: str) -> Prompt:
    """Read a prompt, a string or chat messages.

    Raises:
        RowError: the value is neither a string nor a conversation that ends with the user.
    """
    value = decoded(field, value)
    if isinstance(value, str):
        return Prompt.of(check_text(value, field))
    return as_prompt(read_messages(value, field, "a string or a list of messages"), field)
