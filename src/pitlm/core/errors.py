"""Exceptions that are shown to the user as one message, and the words that say what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input from the user: shown as one message, exit code 2, no traceback.

    Compose the message with :meth:`at` if a file is to blame, so that every message names
    the place, what was found and what was expected.
    """

    exit_code = 2

    @classmethod
    def at(
        cls, file: object, *, found: str, expected: str, line: int | None = None, field: str | None = None
    ) -> InputError:
        """Build the message ``file:line: field 'f': found ..., expected ...``."""
        where = f"{file}:{line}" if line is not None else f"{file}"
        if field is not None:
            where += f": field '{field}'"
        return cls(f"{where}: found {found}, expected {expected}")


class ConversationError(InputError):
    """A message that cannot be read, or a conversation that is no prompt: what was found, what was expected."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"prompt: found {found}, expected {expected}")
        self.found, self.expected = found, expected


class Stopped(RuntimeError):
    """Work that ended early through no fault of its input: shown as one message, exit code 1, no traceback.

    What is finished is kept, and the same command goes on.
    """

    exit_code = 1


class RankFailed(Stopped):
    """A process that trained together with others ended early."""


class MemoryFull(Stopped):
    """A stage needs more memory than there is."""


class BudgetSpent(Stopped):
    """A limit that the user set was reached before the work was done. Exit code 3."""

    exit_code = 3


def refuse_device(path: object) -> None:
    """Raise InputError for a device or a pipe, because to read one may never end."""
    place = Path(str(path))
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise InputError.at(path, found="a device or a pipe", expected="a file or a folder")


@contextmanager
def loading(path: object, name: str) -> Iterator[None]:
    """In this block ``name`` (such as "model card") is made from ``path``. Its errors become InputErrors with both.

    Every kind of error but MemoryError, because libraries raise any kind when they read a damaged file.
    """
    refuse_device(path)
    try:
        yield
    except (InputError, Stopped, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot load a {name}: {first_line(error)}") from error


@contextmanager
def placed(place: str, kind: type[ValueError] = InputError) -> Iterator[None]:
    """In this block an error of one kind becomes an InputError whose message starts with the place of the error."""
    try:
        yield
    except kind as error:
        raise InputError(f"{place}: {error}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's class name. Of pydantic's errors, the first one."""
    if callable(listed := getattr(error, "errors", None)):
        return "{}: {msg}".format(".".join(map(str, listed()[0]["loc"])), **listed()[0])
    text = f"no {error}" if isinstance(error, KeyError) else str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def describe(value: object) -> str:
    """A few words for an error message: the kind of value and at most its first 30 characters."""
    match value:
        case None:
            return "null"
        case str():
            return f"a string ({value[:30] + ('…' if len(value) > 30 else '')!r})"
        case bool() | int() | float():
            return f"a {'boolean' if isinstance(value, bool) else 'number'} ({str(value)[:30]})"
        case Mapping():
            return f"an object with the fields {list_fields(value)}"
        case Sequence():
            return f"a list of {len(value)}"
        case _:
            return f"a value of type {type(value).__name__}"


def list_fields(row: Mapping[str, object]) -> str:
    """The names of a row's first six fields, for an error message."""
    names = [str(name)[:30] for name in row]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") if names else "none"
