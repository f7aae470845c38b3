"""One answer through the loop while its client waits: nothing blocks, and when a model fails, y_0 stands."""

import asyncio
import logging
import math
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from pydantic import Field

from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Improvement, Prompt, StopReason, Trace
from pitlm.core.section import PositiveInt, Section
from pitlm.loop.loop import Loop

log = logging.getLogger("pitlm.loop")


class Unavailable(Exception):
    """An improver or gap model that cannot do its work now; the message says why, and quotes no conversation."""


@dataclass(frozen=True, slots=True)
class ProposalRequest:
    """A request for a better answer than ``reference``.

    Attributes:
        seed: with a seed, the same answer each time.
        max_tokens: most tokens that the answer may have. The proposer may return a longer answer, with its true length.
    """

    prompt: Prompt
    reference: str
    temperature: float
    seed: int | None = None
    max_tokens: int | None = None


class AsyncProposer(Protocol):
    """Writes a better version of a reference."""

    async def propose(self, request: ProposalRequest) -> Answer:
        """One proposal.

        Raises:
            Unavailable: the improver cannot answer now.
            InputError: the improver can never answer this; the message quotes no conversation either.
        """


class AsyncScorer(Protocol):
    """Calibrated gaps."""

    async def margin(self) -> float:
        """The margin that the gap model was calibrated to; 0 without a calibration.

        Raises:
            Unavailable: the gap model cannot answer now.
        """

    async def gap(self, item: Improvement) -> float:
        """How much better the response is than the reference (0: no change).

        Raises:
            Unavailable: the gap model cannot answer now.
            InputError: the gap model can never score this.
        """


class Bounds(Section):
    """The bounds in the request for y_0. An answer in place of y_0 has to keep them, too.

    Attributes:
        stop: sequences that the answer ends before.
        max_tokens: most tokens of the answer, as its writer counts them.
        temperature: the highest sampling temperature.
        seed: with a seed, the same answer each time.
        rounds: most rounds of the loop.
    """

    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    seed: int | None = None
    rounds: PositiveInt | None = None

    def settings(self, own: LoopSection, seconds: float) -> LoopSection:
        """The loop's settings within these bounds and this many seconds."""
        temperature = own.temperature if self.temperature is None else min(self.temperature, own.temperature)
        rounds = own.rounds if self.rounds is None else min(self.rounds, own.rounds)
        seconds = min(own.seconds or seconds, seconds)
        return own.model_copy(update={"temperature": temperature, "rounds": rounds, "seconds": seconds})

    def cut(self, text: str) -> str:
        """The text up to the first stop sequence."""
        return text[: min((at for s in self.stop if (at := text.find(s)) >= 0), default=len(text))].strip()


@dataclass(frozen=True, slots=True)
class LiveOutcome:
    """The outcome of the loop for one answer.

    Attributes:
        failure: why the loop broke off; empty if it came to its end.
    """

    trace: Trace
    failure: str = ""

    @property
    def improved(self) -> bool:
        return self.trace.final != self.trace.original

    @property
    def name(self) -> str:
        """``improved``, ``kept`` (y_0 stands) or ``failed-open`` (y_0 stands because something failed)."""
        return "improved" if self.improved else "failed-open" if self.failure else "kept"


@dataclass(frozen=True, slots=True)
class Improving:
    """Improves answers. A failure of a model raises no exception; the outcome names the failure.

    Attributes:
        seconds: time limit of one answer. After it the best answer so far stands: y_0 if no round has ended.
    """

    improver: AsyncProposer
    scorer: AsyncScorer
    settings: LoopSection
    seconds: float

    async def __call__(self, prompt: Prompt, response: str, bounds: Bounds) -> LiveOutcome:
        """Improve y_0 = ``response`` within bounds."""
        settings = bounds.settings(self.settings, self.seconds)
        loop = Loop(prompt, response, settings, margin=settings.margin or 0.0)
        failure = ""
        try:
            async with asyncio.timeout(self.seconds):
                if settings.margin is None:
                    loop = Loop(prompt, response, settings, margin=await self.scorer.margin())
                while loop.begin_round():
                    loop.take(*await self._round(loop, bounds))
        except* TimeoutError:
            failure = "time limit"
            loop.stop(StopReason.SECONDS)
        except* (Unavailable, InputError) as errors:
            failure = str(errors.exceptions[0])
        except* Exception as errors:  # the client gets the upstream's answer, whatever fails here
            log.exception("the loop failed")
            failure = f"internal error ({type(errors.exceptions[0]).__name__})"
        loop.stop()  # if the loop has not ended
        return LiveOutcome(loop.trace(), failure)

    async def _round(self, loop: Loop, bounds: Bounds) -> tuple[list[Answer], list[float]]:
        """Proposals of one round and their gaps, all at once; when one fails, the others are not left running."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._proposal(loop, n, bounds)) for n in range(loop.settings.proposals)]
        made = [task.result() for task in tasks]
        return [answer for answer, _ in made], [gap for _, gap in made]

    async def _proposal(self, loop: Loop, number: int, bounds: Bounds) -> tuple[Answer, float]:
        """One proposal, cut at the stop sequences, and its gap: NaN if it is too long, so that it is not accepted."""
        prompt, reference, settings = loop.prompt, loop.best, loop.settings
        seed = None if bounds.seed is None else bounds.seed + len(loop.rounds) * settings.proposals + number
        request = ProposalRequest(prompt, reference, settings.temperature, seed, bounds.max_tokens)
        made = await self.improver.propose(request)
        answer = replace(made, text=bounds.cut(made.text) or reference)  # an empty text is no proposal
        if bounds.max_tokens is not None and made.generated_tokens > bounds.max_tokens:
            return answer, math.nan
        if answer.text == reference:
            return answer, 0.0
        return answer, await self.scorer.gap(Improvement(prompt, reference, answer.text))
