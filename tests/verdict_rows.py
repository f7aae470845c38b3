"""Verdict rows from strings of letters."""

from __future__ import annotations

from pitlm.core.verdicts import Row, Verdict

LETTERS = {
    "w": Verdict.WIN,
    "t": Verdict.TIE,
    "l": Verdict.LOSS,
    "i": Verdict.INCONSISTENT,
    "u": Verdict.UNPARSABLE,
}


def rows_of(*items: str, first: str = "pit", second: str = "original") -> list[Row]:
    """One string of verdict letters per item."""
    return [
        Row(f"item-{number}", first, second, LETTERS[letter])
        for number, letters in enumerate(items)
        for letter in letters
    ]
