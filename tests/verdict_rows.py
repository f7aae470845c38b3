"""Verdict rows from strings of letters."""

from __future__ import annotations

from pitlm.core.verdicts import Verdict, VerdictRow

LETTERS = {
    "w": Verdict.WIN,
    "t": Verdict.TIE,
    "l": Verdict.LOSS,
    "i": Verdict.INCONSISTENT,
    "u": Verdict.UNPARSABLE,
}


def rows_of(*items: str, first: str = "pit", second: str = "original") -> list[VerdictRow]:
    """One string of verdict letters per item."""
    return [
        VerdictRow(f"item-{number}", first, second, LETTERS[letter])
        for number, letters in enumerate(items)
        for letter in letters
    ]
