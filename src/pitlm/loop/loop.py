"""The loop: y_i ~ M_PIT(. | x, y_{i-1}), accepted only if R_PIT finds y_i better than y_{i-1}.

The paper iterates without a stop rule, and says that a stop rule is needed. The rule here is ours. In each round the
improver makes k proposals. The proposal with the largest gap to the incumbent replaces it if the gap exceeds a margin.
The loop ends with the first round that changes nothing, and the incumbent is the result.

:class:`Loop` is this rule for one response. It knows no models, files or threads. Its driver begins a round, gets
proposals and gaps from anywhere, and hands them to the loop. :func:`improve_many` is the simplest driver;
:mod:`pitlm.loop.live_loop` has the driver for a client that waits.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Advance, Answer, AnyPrompt, Improvement, Prompt, Round, StopReason, Trace
from pitlm.loop.calibration import margin_for

Clock = Callable[[], float]
"""Returns seconds, such as ``time.monotonic``."""

BUDGETS = (StopReason.TOKENS, StopReason.SECONDS, StopReason.COST)
"""Budgets of a loop; each has the name of its setting."""


class Proposer(Protocol):
    """Writes a better version of each reference; :class:`pitlm.Improver` is one."""

    def propose(
        self, prompts: Sequence[Prompt], references: Sequence[str], *, temperature: float, seed: int
    ) -> list[Answer]: ...


Refiner = Callable[[Prompt, str], str | Answer]
"""A user's own function that improves one response. It samples as it likes. An Answer says what the call cost."""


class GapScorer(Protocol):
    """Gaps of (x, y_ref, y), 0 for no change; :class:`pitlm.GapModel` is one.

    :func:`pitlm.loop.calibration.margin_for` says where the loop finds the scorer's calibrated margin.
    """

    def gaps(self, items: Sequence[Improvement]) -> Iterable[float]: ...


class Loop:
    """One response on its way through the loop: call :meth:`begin_round`, then :meth:`take`, until no round begins.

    Args:
        margin: the gap that a proposal must exceed. With infinity the loop asks for nothing and changes nothing. With
            minus infinity there is no stop rule: a round that changes nothing does not end the loop.
        clock: measures the budget of seconds, which starts with the first round.

    Attributes:
        best: the incumbent, which is the reference of the next proposals.
        rounds: the rounds that were played.
        reason: why the loop has ended; None while it runs.
    """

    def __init__(
        self, prompt: Prompt, response: str, settings: LoopSection, *, margin: float, clock: Clock = time.monotonic
    ) -> None:
        self.prompt = prompt
        self.original = self.best = response
        self.settings = settings
        self.margin = margin
        self.rounds: list[Round] = []
        self.reason = StopReason.ACCEPTED_NONE if margin == math.inf else None
        self._clock = clock
        self._began: float | None = None
        self._asked = 0.0
        self._spent = dict.fromkeys(BUDGETS, 0.0)
        self._dearest = dict.fromkeys(BUDGETS, 0.0)

    def begin_round(self) -> bool:
        """Begin the next round; False if the loop has ended.

        No round begins if another round like the dearest so far would exceed a budget. So a budget is exceeded only by
        the first round, or by a round that costs more than every round before it.
        """
        self._asked = self._clock()
        self._began = self._asked if self._began is None else self._began
        self._spent[StopReason.SECONDS] = self._asked - self._began
        for budget in BUDGETS if self.reason is None else ():
            limit = getattr(self.settings, budget)
            if limit is not None and self._spent[budget] + self._dearest[budget] > limit:
                self.reason = budget
        return self.reason is None

    def take(self, proposals: Sequence[Answer], gaps: Sequence[float]) -> None:
        """Decide on the proposals of one round: accept the best one, or end the loop.

        Args:
            gaps: the gap of each proposal to the incumbent. NaN is never accepted.

        Raises:
            ValueError: no proposals, another number of gaps, or a loop that has ended.
        """
        if self.reason is not None:
            raise ValueError(f"the loop has ended ({self.reason}) and takes no proposals")
        if not proposals or len(proposals) != len(gaps):
            raise ValueError(f"found {len(proposals)} proposals and {len(gaps)} gaps, expected as many, and some")
        changed = [index for index, proposal in enumerate(proposals) if proposal.text != self.best]
        best = max(changed, key=lambda index: -math.inf if math.isnan(gaps[index]) else gaps[index], default=0)
        accepted = bool(changed) and gaps[best] > self.margin

        tokens = sum(proposal.generated_tokens for proposal in proposals)
        read = sum(proposal.prompt_tokens for proposal in proposals)
        cost = sum(proposal.cost for proposal in proposals)
        for budget, value in zip(BUDGETS, (tokens, self._clock() - self._asked, cost), strict=True):
            self._spent[budget] += value
            self._dearest[budget] = max(self._dearest[budget], value)
        several = tuple(gaps) if len(gaps) > 1 else ()
        self.rounds.append(Round(proposals[best].text, gaps[best], accepted, several, tokens, read))
        if accepted:
            self.best = proposals[best].text
        elif self.margin > -math.inf:
            self.reason = StopReason.ACCEPTED_NONE if changed else StopReason.CONVERGED
            return
        if len(self.rounds) == self.settings.rounds:
            self.reason = StopReason.ROUNDS

    def stop(self, reason: StopReason = StopReason.CANCELLED) -> None:
        """End the loop from outside with the best answer so far. A loop that has ended keeps its reason."""
        self.reason = self.reason or reason

    def trace(self) -> Trace:
        """The rounds of the loop, its result, and its cost.

        Raises:
            ValueError: the loop has not ended.
        """
        if self.reason is None:
            raise ValueError("the loop has not ended")
        tokens, cost = int(self._spent[StopReason.TOKENS]), self._spent[StopReason.COST]
        read = sum(step.prompt_tokens for step in self.rounds)
        return Trace(self.prompt, self.original, tuple(self.rounds), self.reason, tokens, read, cost)


def improve(prompt: AnyPrompt, response: str, *, improver: Proposer | Refiner, gap: GapScorer, **more: Any) -> Trace:
    """Improve one response; ``more`` are the seed and the settings, as in :func:`improve_many`."""
    return improve_many([Prompt.of(prompt)], [response], improver=improver, gap=gap, **more)[0]


def improve_many(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    improver: Proposer | Refiner,
    gap: GapScorer,
    seed: int = 0,
    advance: Advance | None = None,
    **settings: Any,
) -> list[Trace]:
    """Improve many responses together, round by round.

    Args:
        improver: an object with ``propose``, or a function (prompt, reference) -> response. The function is called for
            one response at a time, and is not told the temperature and the seed.
        advance: called with the number of responses that have just been finished.
        settings: rounds, proposals, margin, temperature, tokens, seconds, cost, as in
            :class:`pitlm.core.recipe.LoopSection`.

    Returns:
        One trace for each response.

    Raises:
        InputError: an impossible setting.
    """
    section = LoopSection.of(settings, spell="{}".format)
    margin = margin_for(gap, section)
    loops = [Loop(x, y, section, margin=margin) for x, y in zip(prompts, responses, strict=True)]
    running = loops
    while running:
        left = play_round(running, improver, gap, seed=seed)
        if advance is not None and len(left) < len(running):
            advance(len(running) - len(left))
        running, seed = left, seed + 1
    return [loop.trace() for loop in loops]


def play_round(loops: Sequence[Loop], improver: Proposer | Refiner, gap: GapScorer, *, seed: int) -> list[Loop]:
    """Play one round of loops with equal settings. Return the loops that have not ended."""
    asking = [loop for loop in loops if loop.begin_round()]
    if not asking:
        return []
    settings = asking[0].settings
    requests = [loop for loop in asking for _ in range(settings.proposals)]
    prompts, references = [loop.prompt for loop in requests], [loop.best for loop in requests]
    if hasattr(improver, "propose"):
        proposals = improver.propose(prompts, references, temperature=settings.temperature, seed=seed)
    else:
        made = [improver(prompt, reference) for prompt, reference in zip(prompts, references, strict=True)]
        proposals = [answer if isinstance(answer, Answer) else Answer(answer) for answer in made]
    items = [Improvement(x, y_ref, y.text) for x, y_ref, y in zip(prompts, references, proposals, strict=True)]
    gaps = [float(value) for value in gap.gaps(items)]
    for number, loop in enumerate(asking):
        own = slice(number * settings.proposals, (number + 1) * settings.proposals)
        loop.take(proposals[own], gaps[own])
    return [loop for loop in asking if loop.reason is None]
