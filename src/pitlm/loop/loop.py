"""The loop: y_i ~ M_PIT(. | x, y_{i-1}), accepted only where R_PIT says it is better.

The paper iterates without a stop rule and says that one needs care. Ours: of k proposals the best by gap replaces the
incumbent, if that gap exceeds a margin; the first round that brings nothing ends the loop, and the best is kept.

:class:`Loop` is that rule for one response, without models, files or threads: whoever drives it asks what it wants,
gets proposals and their gaps from wherever they come, and hands them in. :func:`improve_many` is the simplest driver.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pitlm.core.nouns import Advance, Answer, Improvement, Message, Prompt, Round, StopReason, Trace
from pitlm.core.recipe import LoopSection

Clock = Callable[[], float]
BUDGETS = (StopReason.TOKENS, StopReason.SECONDS, StopReason.COST)


class Proposer(Protocol):
    """Writes a better version of each reference; :class:`pitlm.Improver` is one."""

    def propose(
        self, prompts: Sequence[Prompt], references: Sequence[str], *, temperature: float, seed: int
    ) -> list[Answer]: ...


Refiner = Callable[[Prompt, str], str | Answer]
"""Somebody's own way to better a response, one at a time; it samples as it likes, and an Answer says what it took."""


class GapScorer(Protocol):
    """Calibrated gaps of (x, y_ref, y), 0 for no change; :class:`pitlm.GapModel` is one.

    A scorer may have an attribute ``margin``: the margin that was calibrated for it, or None.
    """

    def gaps(self, items: Sequence[Improvement]) -> Iterable[float]: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a loop asks for: this many versions of the reference, and each one's gap to it. Rounds count from 0."""

    prompt: Prompt
    reference: str
    proposals: int
    round: int

    def improvements(self, proposals: Sequence[Answer]) -> list[Improvement]:
        """What the gap model is asked about the proposals."""
        return [Improvement(self.prompt, self.reference, proposal.text) for proposal in proposals]


class Loop:
    """One response on its way through the loop: ask :meth:`next`, hand in with :meth:`take`, until next is None.

    Args:
        margin: what a gap has to exceed; infinity changes nothing, and asks for nothing.
        clock: seconds, for the budget of seconds, which begins with the first round.
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
        self._prompt_tokens = 0

    def next(self) -> Wanted | None:
        """What the next round needs, or None where the loop has ended.

        A round is not begun if one like the dearest so far would go over a budget. So only the first round can, or one
        that takes more than every round before it.
        """
        self._asked = self._clock()
        self._began = self._asked if self._began is None else self._began
        self._spent[StopReason.SECONDS] = self._asked - self._began
        for budget in BUDGETS if self.reason is None else ():
            limit = getattr(self.settings, budget)
            if limit is not None and self._spent[budget] + self._dearest[budget] > limit:
                self.reason = budget
        if self.reason is not None:
            return None
        return Wanted(self.prompt, self.best, self.settings.proposals, len(self.rounds))

    def take(self, proposals: Sequence[Answer], gaps: Sequence[float]) -> None:
        """Decide on the proposals of one round.

        Args:
            gaps: of each proposal to the incumbent; NaN is never accepted.

        Raises:
            ValueError: no proposals, another number of gaps, or a loop that has ended.
        """
        if self.reason is not None:
            raise ValueError(f"the loop has ended ({self.reason}) and takes no proposals")
        if not proposals or len(proposals) != len(gaps):
            raise ValueError(f"found {len(proposals)} proposals and {len(gaps)} gaps, expected as many, and some")
        self._pay(proposals)
        changed = [index for index, proposal in enumerate(proposals) if proposal.text != self.best]
        best = max(changed, key=lambda index: -math.inf if math.isnan(gaps[index]) else gaps[index], default=0)
        accepted = bool(changed) and gaps[best] > self.margin
        several = tuple(gaps) if len(gaps) > 1 else ()
        tokens, read = (sum(getattr(p, name) for p in proposals) for name in ("generated_tokens", "prompt_tokens"))
        self.rounds.append(Round(proposals[best].text, gaps[best], accepted, several, tokens, read))
        if not accepted:
            self.reason = StopReason.ACCEPTED_NONE if changed else StopReason.CONVERGED
            return
        self.best = proposals[best].text
        if len(self.rounds) == self.settings.rounds:
            self.reason = StopReason.ROUNDS

    def stop(self, reason: StopReason = StopReason.CANCELLED) -> None:
        """End the loop from outside, with the best so far; one that has ended keeps its reason."""
        self.reason = self.reason or reason

    def trace(self) -> Trace:
        """What the loop did.

        Raises:
            ValueError: it has not ended.
        """
        if self.reason is None:
            raise ValueError("the loop has not ended")
        generated, cost = int(self._spent[StopReason.TOKENS]), self._spent[StopReason.COST]
        return Trace(self.prompt, self.original, tuple(self.rounds), self.reason, generated, self._prompt_tokens, cost)

    def _pay(self, proposals: Sequence[Answer]) -> None:
        round_ = {
            StopReason.TOKENS: sum(proposal.generated_tokens for proposal in proposals),
            StopReason.SECONDS: self._clock() - self._asked,
            StopReason.COST: sum(proposal.cost for proposal in proposals),
        }
        for budget, value in round_.items():
            self._spent[budget] += value
            self._dearest[budget] = max(self._dearest[budget], value)
        self._prompt_tokens += sum(proposal.prompt_tokens for proposal in proposals)


def margin_for(gap: object, settings: LoopSection) -> float:
    """The margin that holds: the one that is set, else that of the scorer or its calibration, if it has one, else 0."""
    calibrated: float | None = getattr(gap, "margin", None)
    return next(margin for margin in (settings.margin, calibrated, 0.0) if margin is not None)


def as_proposer(improver: Proposer | Refiner) -> Proposer:
    """Let a plain function (prompt, reference) -> response stand where an improver is wanted."""
    return improver if hasattr(improver, "propose") else _OneByOne(improver)


@dataclass(frozen=True, slots=True)
class _OneByOne:
    refine: Refiner

    def propose(
        self, prompts: Sequence[Prompt], references: Sequence[str], *, temperature: float, seed: int
    ) -> list[Answer]:
        made = [self.refine(prompt, reference) for prompt, reference in zip(prompts, references, strict=True)]
        return [answer if isinstance(answer, Answer) else Answer(answer) for answer in made]


def improve(
    prompt: str | Prompt | Sequence[dict[str, Any] | Message],
    response: str,
    *,
    improver: Proposer | Refiner,
    gap: GapScorer,
    seed: int = 0,
    clock: Clock = time.monotonic,
    **settings: Any,
) -> Trace:
    """Improve one response; see :func:`improve_many`."""
    return improve_many(
        [Prompt.of(prompt)], [response], improver=improver, gap=gap, seed=seed, clock=clock, **settings
    )[0]


def improve_many(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    improver: Proposer | Refiner,
    gap: GapScorer,
    seed: int = 0,
    advance: Advance | None = None,
    clock: Clock = time.monotonic,
    **settings: Any,
) -> list[Trace]:
    """Improve many responses together, round by round; one trace each.

    Args:
        improver: an object with ``propose``, or a function (prompt, reference) -> response that is called one at a
            time; a function is not told the temperature and the seed.
        advance: told how many responses have just been finished.
        settings: rounds, proposals, margin, temperature, tokens, seconds, cost, as in
            :class:`pitlm.core.recipe.LoopSection`.

    Raises:
        InputError: an impossible setting.
    """
    loop = LoopSection.of(settings)
    margin, proposer = margin_for(gap, loop), as_proposer(improver)
    loops = [Loop(x, y, loop, margin=margin, clock=clock) for x, y in zip(prompts, responses, strict=True)]
    run_loops(loops, proposer, gap, seed=seed, advance=advance)
    return [one.trace() for one in loops]


def run_loops(
    loops: Sequence[Loop], improver: Proposer, gap: GapScorer, *, seed: int, advance: Advance | None = None
) -> None:
    """Drive loops of like settings to their ends, round by round."""
    active = _asking(loops)
    if advance is not None and len(active) < len(loops):
        advance(len(loops) - len(active))
    number = 0
    while active:
        asked = [wanted for _, wanted in active for _ in range(wanted.proposals)]
        made = improver.propose(
            [wanted.prompt for wanted in asked],
            [wanted.reference for wanted in asked],
            temperature=loops[0].settings.temperature,
            seed=seed + number,
        )
        items = [item for wanted, answer in zip(asked, made, strict=True) for item in wanted.improvements([answer])]
        gaps = [float(value) for value in gap.gaps(items)]
        start = 0
        for loop, wanted in active:
            own = slice(start, start := start + wanted.proposals)
            loop.take(made[own], gaps[own])
        still = _asking([loop for loop, _ in active])
        if advance is not None:
            advance(len(active) - len(still))
        active, number = still, number + 1


def _asking(loops: Sequence[Loop]) -> list[tuple[Loop, Wanted]]:
    return [(loop, wanted) for loop in loops if (wanted := loop.next()) is not None]
