"""Judges that compare two scores: the pocket world's truth, and reward models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Row, Verdict
from pitlm.judge.protocol import Advance

Score = Callable[[Sequence[Prompt], Sequence[str]], list[float]]


@dataclass(frozen=True)
class ScoreJudge:
    """Prefers the response with the higher score.

    A score does not depend on the order in which two responses are shown, so its verdicts are always consistent.

    Attributes:
        name: how reports call it.
        score: quality of each (x, y).
        tie: scores closer than this are a tie.
    """

    name: str
    score: Score
    tie: float = 1e-6

    def verdict(self, first: float, second: float) -> Verdict:
        if abs(first - second) <= self.tie:
            return Verdict.TIE
        return Verdict.WIN if first > second else Verdict.LOSS

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[Row]:
        """One row per comparison, seen from its first response."""
        prompts = [comparison.prompt for comparison in comparisons]
        firsts = self.score(prompts, [comparison.first for comparison in comparisons])
        seconds = self.score(prompts, [comparison.second for comparison in comparisons])
        if advance is not None:
            advance(len(comparisons))
        return [
            Row.of(comparison, self.verdict(*scores), judge=self.name, scores=scores)
            for comparison, scores in zip(comparisons, zip(firsts, seconds, strict=True), strict=True)
        ]
