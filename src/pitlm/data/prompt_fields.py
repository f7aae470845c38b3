"""What rows of prompts have in common, whether they are answers to compare or answers to improve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt

PROMPT_FIELDS = ("prompt", "messages", "instruction")
"""Where a row has its prompt; AlpacaEval calls it ``instruction``."""


def is_unicode(text: str) -> bool:
    """Whether a string is valid Unicode, which JSON's and a shell's need not be."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def check_unicode(text: str, file: str, line: int, field: str) -> None:
    """Refuse text that could not be written to a file.

    Raises:
        InputError: a lone surrogate.
    """
    if not is_unicode(text):
        found = "half a character (a lone surrogate)"
        raise InputError.at(file, line=line, field=field, found=found, expected="valid Unicode")


def prompt_in(row: Mapping[str, Any], field: str, file: str, line: int) -> Prompt:
    """The prompt in one field of a row, a string or messages.

    Raises:
        InputError: something else there, with file, line and field.
    """
    try:
        return Prompt.of(row[field])
    except InputError as error:
        raise InputError(f"{file}:{line}: field '{field}': {error}") from error


def prompt_text(prompt: Prompt) -> str:
    """All that a prompt says."""
    return "".join(message.content for message in prompt.messages)
