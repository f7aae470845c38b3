"""One answer through the loop, without blocking, ending in y_0 whatever happens to the models."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pitlm.core.nouns import Answer, Improvement, Prompt, StopReason, Trace
from pitlm.core.recipe import LoopSection
from pitlm.loop.loop import Loop, Wanted

log = logging.getLogger("pitlm.serve")
T = TypeVar("T")


class Unavailable(Exception):
    """An improver or gap model that cannot do its work now; the message says why, and quotes no conversation."""


class Unfit(Unavailable):
    """What was asked for can never be had: the message says why, and quotes no conversation either."""


class AsyncProposer(Protocol):
    """Writes a better version of a reference."""

    async def propose(
        self, prompt: Prompt, reference: str, *, temperature: float, seed: int | None, max_tokens: int | None
    ) -> Answer:
        """One proposal; with a seed, the same one each time. One longer than ``max_tokens`` counts as such a one.

        Raises:
            Unavailable: it cannot.
        """
        ...


class AsyncScorer(Protocol):
    """Calibrated gaps."""

    async def margin(self) -> float:
        """The margin that it was calibrated to; 0 where it was not.

        Raises:
            Unavailable: it cannot say.
        """
        ...

    async def gap(self, item: Improvement) -> float:
        """How much better the response is than the reference (0: no change).

        Raises:
            Unavailable: it cannot say.
        """
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What was asked of y_0 and has to hold for any answer in its place.

    Attributes:
        stop: sequences that the answer ends before.
        max_tokens: that the answer may have, as its writer counts them.
        temperature: nothing is sampled hotter.
        seed: with one, the same answer each time.
        rounds: at most this many.
    """

    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    rounds: int | None = None

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
    """What became of an answer.

    Attributes:
        failure: why the loop could not be brought to its end; empty where it was.
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
    """Improves answers; never raises for what the models do.

    Attributes:
        seconds: for one answer; then the best so far stands, which is y_0 where no round has ended.
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
                while (wanted := loop.next()) is not None:
                    loop.take(*await self._round(wanted, bounds, settings.temperature))
        except TimeoutError:
            failure = "time limit"
            loop.stop(StopReason.SECONDS)
        except Unavailable as error:
            failure = str(error)
            loop.stop()
        except Exception as error:  # the client has an answer coming, whatever is wrong with ours
            log.exception("the loop failed")
            failure = f"internal error ({type(error).__name__})"
            loop.stop()
        return LiveOutcome(loop.trace(), failure)

    async def _round(self, wanted: Wanted, bounds: Bounds, temperature: float) -> tuple[list[Answer], list[float]]:
        """Proposals of one round, cut as y_0 would have been, and their gaps."""
        first = None if bounds.seed is None else bounds.seed + wanted.round * wanted.proposals
        made = await _together(
            self.improver.propose(
                wanted.prompt,
                wanted.reference,
                temperature=temperature,
                seed=None if first is None else first + number,
                max_tokens=bounds.max_tokens,
            )
            for number in range(wanted.proposals)
        )
        texts = [bounds.cut(answer.text) or wanted.reference for answer in made]  # nothing at all is no proposal
        cut = [Answer(text, a.generated_tokens, a.prompt_tokens, a.cost) for text, a in zip(texts, made, strict=True)]
        items = wanted.improvements(cut)
        return cut, await _together(self._gap(item, a, bounds) for item, a in zip(items, cut, strict=True))

    async def _gap(self, item: Improvement, answer: Answer, bounds: Bounds) -> float:
        """The gap; NaN, which is never accepted, for an answer that is too long."""
        if bounds.max_tokens is not None and answer.generated_tokens > bounds.max_tokens:
            return math.nan
        return 0.0 if item.response == item.reference else await self.scorer.gap(item)


async def _together(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """All of them at once; when one fails, the others are not left running."""
    tasks: list[Any] = [asyncio.ensure_future(one) for one in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
