"""Text for a terminal: it cannot move the cursor, set the title, or reorder other text."""

from typing import Any

import click

_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_REORDERING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = _PICTURES | dict.fromkeys((*range(0x80, 0xA0), *_REORDERING, *range(0xD800, 0xE000)), 0xFFFD)


def visible(text: str) -> str:
    """The text with a visible sign in place of each character that controls a terminal, or that none can show.

    Answers, names and messages come from models, files and servers. A control character becomes its picture (␛), and
    C1 controls, bidirectional overrides and lone surrogates become �. Line feeds and tabs stay.
    """
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """The text in one line, without characters that cannot be printed."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def echo(text: str, **how: Any) -> None:
    """Print a line, as ``click.echo`` does, with :func:`visible` text."""
    click.echo(visible(text), **how)
