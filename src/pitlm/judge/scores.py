"""Judges that compare two scores: the pocket world's truth, reward models, and the gap model in both orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pitlm.core.nouns import Advance, Improvement, Prompt
from pitlm.core.verdicts import Comparison, Reply, Verdict, VerdictRow
from pitlm.judge.parsing import row_of_replies

Score = Callable[[Sequence[Prompt], Sequence[str]], list[float]]
Gap = Callable[[Sequence[Improvement]], list[float]]


@dataclass(frozen=True)
class ScoreJudge:
    """Prefers the response with the higher score.

    A score does not depend on the order in which two responses are shown, so its verdicts are always consistent.

    Attributes:
        name: how reports call it.
        score: quality of each (x, y).
        tie: scores closer than this are a tie. A score that is not a number is no verdict: unparsable.
    """

    name: str
    score: Score
    tie: float = 1e-6

    def verdict(self, first: float, second: float) -> Verdict:
        if math.isnan(first) or math.isnan(second):
            return Verdict.UNPARSABLE
        if abs(first - second) <= self.tie:
            return Verdict.TIE
        return Verdict.WIN if first > second else Verdict.LOSS

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[VerdictRow]:
        """One row per comparison, seen from its first response."""
        prompts = [comparison.prompt for comparison in comparisons]
        firsts = self.score(prompts, [comparison.first for comparison in comparisons])
        seconds = self.score(prompts, [comparison.second for comparison in comparisons])
        if advance is not None:
            advance(len(comparisons))
        return [self._row(*given) for given in zip(comparisons, firsts, seconds, strict=True)]

    def _row(self, comparison: Comparison, first: float, second: float) -> VerdictRow:
        verdict = self.verdict(first, second)
        scores = None if verdict is Verdict.UNPARSABLE else (first, second)
        return VerdictRow.of(comparison, verdict, judge=self.name, scores=scores)


@dataclass(frozen=True)
class GapJudge:
    """R_PIT as a judge: asks for the gap of the first to the second, and of the second to the first.

    The gap model need not be antisymmetric, so the two orders can disagree; both gaps are kept as the replies.

    Attributes:
        name: how reports call it.
        gap: calibrated gap of each response to its reference, 0 for no change.
        tie: gaps closer to 0 than this are a tie.
    """

    name: str
    gap: Gap
    tie: float = 1e-6

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[VerdictRow]:
        """One row per comparison, seen from its first response."""
        straight = self.gap([Improvement(c.prompt, reference=c.second, response=c.first) for c in comparisons])
        swapped = self.gap([Improvement(c.prompt, reference=c.first, response=c.second) for c in comparisons])
        if advance is not None:
            advance(len(comparisons))
        return [
            row_of_replies(comparison, (self._reply(gap), self._reply(back).swap()), self.name)
            for comparison, gap, back in zip(comparisons, straight, swapped, strict=True)
        ]

    def _reply(self, gap: float) -> Reply:
        """Seen from the response whose gap it is."""
        if math.isnan(gap):
            return Reply(False, Verdict.UNPARSABLE, "nan")
        verdict = Verdict.TIE if abs(gap) <= self.tie else Verdict.WIN if gap > 0 else Verdict.LOSS
        return Reply(False, verdict, f"{gap:+.6f}")
