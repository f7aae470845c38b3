"""A language model as the judge, asked in words through any OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pitlm.core.nouns import Advance, Prompt
from pitlm.core.verdicts import Comparison, Reply, Verdict, VerdictRow
from pitlm.engines.endpoint import ChatEndpoint, Completion
from pitlm.judge.judge_prompt import JudgePrompt
from pitlm.judge.parsing import parse_verdict, row_of_replies


@dataclass
class LLMJudge:
    """Asks about each pair in both orders and keeps both raw replies.

    Two equal responses are a tie, and nobody is asked. A reply that was cut off at its length limit is unparsable,
    whatever its last line; so is one that failed, which keeps its reason.

    Attributes:
        endpoint: who is asked.
        template: how.
        ask_again: how many more times an unparsable reply is asked for. A failed one is not: the endpoint has tried.
    """

    endpoint: ChatEndpoint
    template: JudgePrompt = field(default_factory=JudgePrompt)
    ask_again: int = 0

    @property
    def name(self) -> str:
        return self.endpoint.model

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[VerdictRow]:
        """One row per comparison, in their order, seen from each one's first response.

        Raises:
            InputError: as :meth:`pitlm.engines.endpoint.ChatEndpoint.complete` does.
        """
        different = [index for index, c in enumerate(comparisons) if c.first != c.second]
        if advance is not None:
            advance(len(comparisons) - len(different))
        replies: dict[tuple[int, bool], list[Reply]] = {
            (i, swapped): [] for i in different for swapped in (False, True)
        }
        waiting = list(replies)
        moved = _pairs(advance)
        for attempt in range(1 + self.ask_again):
            shown = [self.template.fill(_ordered(comparisons[index], swapped)) for index, swapped in waiting]
            done = self.endpoint.complete([Prompt.of(text) for text in shown], attempt=attempt, advance=moved)
            moved = None
            for key, text, completion in zip(waiting, shown, done, strict=True):
                replies[key].append(read_reply(completion, swapped=key[1], prompt=text))
            waiting = [key for key in waiting if _no_verdict(replies[key][-1])]
        rows = []
        for index, comparison in enumerate(comparisons):
            if (index, False) in replies:
                rows.append(row_of_replies(comparison, replies[index, False] + replies[index, True], self.name))
            else:
                rows.append(VerdictRow.of(comparison, Verdict.TIE, judge=self.name))
        return rows


def _ordered(comparison: Comparison, swapped: bool) -> Comparison:
    return comparison.swap() if swapped else comparison


def _no_verdict(reply: Reply) -> bool:
    return reply.verdict is Verdict.UNPARSABLE and not reply.failure


def read_reply(completion: Completion, *, swapped: bool, prompt: str = "") -> Reply:
    """A completion as the reply in one order, its verdict turned to be seen from the comparison's first response."""
    usable = not completion.failure and completion.finish != "length"
    verdict = parse_verdict(completion.text) if usable else Verdict.UNPARSABLE
    return Reply(
        swapped=swapped,
        verdict=verdict.swap() if swapped else verdict,
        text=completion.text,
        prompt=prompt,
        input_tokens=completion.input_tokens,
        cached_tokens=completion.cached_tokens,
        output_tokens=completion.output_tokens,
        cost=completion.cost,
        failure=completion.failure,
    )


def _pairs(advance: Advance | None) -> Advance | None:
    """Counts replies and reports pairs."""
    if advance is None:
        return None
    replies = 0

    def moved(count: int) -> None:
        nonlocal replies
        before, replies = replies // 2, replies + count
        advance(replies // 2 - before)

    return moved
