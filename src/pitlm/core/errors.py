"""Exceptions that are shown to the user as one message."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the user: shown as one message, exit code 2, no traceback.

    Compose the message with :meth:`at` where a file is to blame, so that every message names
    the place, what was found and what was expected.
    """

    exit_code = 2

    @classmethod
    def at(
        cls,
        file: object,
        *,
        found: str,
        expected: str,
        line: int | None = None,
        field: str | None = None,
    ) -> InputError:
        """Build the message ``file:line: field 'f': found ..., expected ...``."""
        where = f"{file}:{line}" if line is not None else f"{file}"
        if field is not None:
            where += f": field '{field}'"
        return cls(f"{where}: found {found}, expected {expected}")


class RankFailed(RuntimeError):
    """A process that trained together with others ended early: shown as one message, exit code 1, no traceback.

    Finished training is kept, and the same command goes on.
    """

    exit_code = 1


class BudgetSpent(InputError):
    """A limit that the user set was reached before the work was done; the same command goes on. Exit code 3."""

    exit_code = 3
