"""The fields of one row of data: their names, how text and messages are read, and the error that names a field."""

from collections.abc import Mapping, Sequence

from pitlm.core.errors import ConversationError, describe, list_fields
from pitlm.core.nouns import Message, Prompt

PROMPT_FIELDS = ("prompt", "messages", "instruction")
"""Fields that may have the prompt of a row; ``instruction`` is AlpacaEval's."""

RESPONSE_FIELDS = ("response", "output")
"""Fields that may have the response to improve; ``output`` is AlpacaEval's."""

ANSWER_FIELDS = ("final", *RESPONSE_FIELDS)
"""Fields that may have the judged answer. `pit improve` writes ``final``, which comes before the answer it improved."""

Turns = list[Message]


class RowError(ValueError):
    """A row that cannot be used: which field, what was found in it, what was expected."""

    def __init__(self, field: str | None, found: str, expected: str) -> None:
        prefix = f"field '{field}': " if field else ""
        super().__init__(f"{prefix}found {found}, expected {expected}")
        self.field, self.found, self.expected = field, found, expected


def first_field(row: Mapping[str, object], names: Sequence[str]) -> str:
    """The first of the fields that holds something.

    Raises:
        RowError: no field holds anything.
    """
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        expected = " or ".join(f"'{name}'" for name in names)
        raise RowError(None, f"the fields {list_fields(row)}", expected)
    return found


def is_unicode(text: str) -> bool:
    """Whether a string is valid Unicode. A string from JSON or from a shell may be invalid."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def check_text(value: object, field: str | None, expected: str = "a string") -> str:
    """Return a value that is text and can be written to a file.

    Raises:
        RowError: the value is no text, or has a lone surrogate.
    """
    if not isinstance(value, str):
        raise RowError(field, describe(value), expected)
    if not is_unicode(value):
        raise RowError(field, "half a character (a lone surrogate)", "valid Unicode")
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
        turns = [Message.of(item, number) for number, item in enumerate(value, start=1)]
    except ConversationError as error:
        raise RowError(field, error.found, error.expected) from error
    for turn in turns:
        check_text(turn.content, field)
    return turns


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
    if isinstance(value, str):
        return Prompt.of(check_text(value, field))
    return as_prompt(read_messages(value, field, "a string or a list of messages"), field)
