"""A judge that says what it is told to: for tests, and for replies that were collected elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.core.nouns import Advance
from pitlm.core.verdicts import Comparison, VerdictRow
from pitlm.data.pairs import describe
from pitlm.data.readers import read_sound_rows
from pitlm.engines.endpoint import Completion
from pitlm.judge.llm import read_reply
from pitlm.judge.parsing import row_of_replies

Rule = Callable[[Comparison], str | Exception]
"""What is said of a comparison whose first response is shown as A; an exception is a failed call."""


@dataclass
class ScriptedJudge:
    """Answers by a rule, in both orders; its words are read as a language model's are."""

    rule: Rule
    name: str = "scripted"

    @classmethod
    def of(cls, replies: Sequence[str | Exception], name: str = "scripted") -> ScriptedJudge:
        """Says the replies one after the other: of each pair first as it is, then swapped."""
        left = iter(replies)
        return cls(lambda comparison: next(left), name)

    @classmethod
    def from_file(cls, path: Path, pairs: int) -> ScriptedJudge:
        """Reads the replies from JSON lines, a string each.

        Raises:
            InputError: something else in the file, or not two replies a pair.
        """
        replies: list[str | Exception] = []
        for raw in read_sound_rows(path):
            if not isinstance(raw.data, str):
                raise InputError.at(
                    raw.file, line=raw.line, found=describe(raw.data), expected="a string: one raw reply"
                )
            replies.append(raw.data)
        if len(replies) != 2 * pairs:
            raise InputError.at(path, found=f"{len(replies)} replies", expected=f"{2 * pairs}, two for each pair")
        return cls.of(replies, path.stem)

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[VerdictRow]:
        """One row per comparison, in their order, seen from each one's first response."""
        rows = []
        for comparison in comparisons:
            said = [(False, self.rule(comparison)), (True, self.rule(comparison.swap()))]
            replies = [read_reply(_completion(reply), swapped=swapped) for swapped, reply in said]
            rows.append(row_of_replies(comparison, replies, self.name))
            if advance is not None:
                advance(1)
        return rows


def _completion(reply: str | Exception) -> Completion:
    if isinstance(reply, Exception):
        return Completion(failure=f"{type(reply).__name__}: {reply}")
    return Completion(text=reply)
