"""The protocol of all judges, and the base class of judges that see each pair in both orders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from pitlm.core.nouns import Advance
from pitlm.core.verdicts import Comparison, Reply, Verdict, VerdictRow

GROUP = "pitlm.judges"
"""The group of entry points in which other packages name their judges."""
JUDGES = {
    "llm": "pitlm.judge.llm:LLMJudge.of",
    "foreign": "pitlm.judge.scores:checkpoint_judge",
    "scripted": "pitlm.judge.llm:ScriptedJudge.of",
}
"""Functions that make each kind of judge from a section of a recipe. A run itself makes ``truth`` and ``reward``."""


class Judge(Protocol):
    """Says which of two responses is better. Swap the comparisons, and the verdicts swap."""

    @property
    def name(self) -> str: ...

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[VerdictRow]:
        """One row per comparison, in their order, seen from the first response of each.

        Args:
            advance: called with the number of comparisons that have just been judged.
        """
        ...


class TwoOrderJudge(ABC):
    """Asks about each pair in both orders and keeps both replies.

    Attributes:
        name: the name of the judge in rows and tables.
        ask_again: how many times the judge is asked again after an unparsable reply. A failed call is not repeated.
        asks_about_equals: whether two equal responses are shown to the judge; otherwise they are a tie.
    """

    name: str
    ask_again: int = 0
    asks_about_equals: bool = True

    @abstractmethod
    def ask(self, shown: Sequence[Comparison], attempt: int, advance: Advance) -> list[Reply]:
        """One reply per comparison, seen from its first response.

        Args:
            shown: both orders of each pair, one after the other.
            attempt: 0 at first; another number asks for another reply to the same comparisons.
            advance: called with the number of replies that have just arrived.
        """

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[VerdictRow]:
        """One row per comparison, in their order, seen from the first response of each."""
        asked = [i for i, pair in enumerate(comparisons) if self.asks_about_equals or pair.first != pair.second]
        attempt = 0

        def moved(count: float) -> None:
            if advance is not None and attempt == 0:  # later attempts repeat pairs that are counted already
                advance(count / 2)

        moved(2 * (len(comparisons) - len(asked)))
        replies: dict[tuple[int, bool], list[Reply]] = {(i, swapped): [] for i in asked for swapped in (False, True)}
        waiting = list(replies)
        for attempt in range(1 + self.ask_again):
            if not waiting:
                break
            shown = [comparisons[index].swap() if swapped else comparisons[index] for index, swapped in waiting]
            for (index, swapped), reply in zip(waiting, self.ask(shown, attempt, moved), strict=True):
                replies[index, swapped].append(reply.swap() if swapped else reply)
            last = {key: replies[key][-1] for key in waiting}
            waiting = [k for k, reply in last.items() if reply.verdict is Verdict.UNPARSABLE and not reply.failure]
        return [
            row_of_replies(comparison, [*replies.get((i, False), ()), *replies.get((i, True), ())], self.name)
            for i, comparison in enumerate(comparisons)
        ]


def row_of_replies(comparison: Comparison, replies: Sequence[Reply], judge: str) -> VerdictRow:
    """The row of a comparison, from the replies in both orders. Without any reply the verdict is a tie.

    Of several replies in one order the last counts.
    """
    if not replies:
        return VerdictRow.of(comparison, Verdict.TIE, judge=judge)
    straight, swapped = ([r for r in replies if r.swapped is order][-1] for order in (False, True))
    verdict = Verdict.of_orders(straight.verdict, swapped.verdict)
    return VerdictRow.of(comparison, verdict, judge=judge, replies=tuple(replies))
