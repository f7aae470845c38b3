"""A judge that says what it is told to: for tests, and for replies that were collected elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.core.judge_section import JudgeSection
from pitlm.core.nouns import Advance
from pitlm.core.verdicts import Comparison, Reply
from pitlm.data.readers import read_sound_rows
from pitlm.data.row_fields import describe
from pitlm.engines.endpoint import Completion
from pitlm.judge.llm import read_reply
from pitlm.judge.protocol import TwoOrderJudge

Script = Callable[[Sequence[Comparison]], Sequence[str | Exception]]
"""What is said of each comparison whose first response is shown as A; an exception is a failed call."""


@dataclass
class ScriptedJudge(TwoOrderJudge):
    """Answers from a script, in both orders; its words are read as those of a language model are."""

    script: Script
    name: str = "scripted"

    @classmethod
    def of(cls, section: JudgeSection) -> ScriptedJudge:
        """Reads the replies from JSON lines, a string each: about each pair first as it is, then swapped.

        Raises:
            InputError: the file cannot be read, or holds something else; when judging: not two replies for each pair.
        """
        path, replies = Path(section.model or ""), []
        for raw in read_sound_rows(path):
            if not isinstance(raw.data, str):
                raise InputError.at(
                    raw.file, line=raw.line, found=describe(raw.data), expected="a string: one raw reply"
                )
            replies.append(raw.data)

        def script(shown: Sequence[Comparison]) -> list[str]:
            if len(replies) != len(shown):
                expected = f"{len(shown)}, two for each pair"
                raise InputError.at(path, found=f"{len(replies)} replies", expected=expected)
            return replies

        return cls(script, path.stem)

    def ask(self, shown: Sequence[Comparison], attempt: int, advance: Advance | None) -> list[Reply]:
        said = self.script(shown)
        if advance is not None:
            advance(len(said))
        return [read_reply(_completion(reply)) for reply in said]


def _completion(reply: str | Exception) -> Completion:
    if isinstance(reply, Exception):
        return Completion(failure=f"{type(reply).__name__}: {reply}")
    return Completion(text=reply)
