"""A batch job: a stream of items, each on its way through its own loop, all of them sharing the engine's places.

Nothing waits for a round of others: whatever an item needs next is asked for as soon as it is known, and the place of
a proposal that is finished goes to whichever is next, of this item or another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Improvement, Trace
from pitlm.core.recipe import LoopSection
from pitlm.data.items import Failure, Item
from pitlm.engines.engine import Engine, Finished, WriteRequest, seed_of
from pitlm.loop.loop import Loop, Wanted

SCORED_TOGETHER = 64
"""Rounds whose gaps are asked for in one call, unless the engine has too little to do meanwhile."""


class GroupScorer(Protocol):
    """Calibrated gaps of each group; :class:`pitlm.GapModel` is one."""

    def gaps_apart(self, groups: Sequence[Sequence[Improvement]]) -> list[list[float]]: ...


@dataclass(eq=False, slots=True)
class _Work:
    """One item on its way; without a loop it waits for its first answer."""

    item: Item
    loop: Loop | None = None
    wanted: Wanted | None = None
    proposals: list[Answer | None] = field(default_factory=list)
    failure: str = ""


class BatchJob:
    """Improves items as they come; iterate over it for what is finished, in the order in which it is.

    Args:
        items: read as far ahead as the engine wants; a failure among them is passed on.
        make_answerer: makes what answers items that have no response; called when there is the first of them.
        answer_temperature: of that.
        seed: with an item's number it decides what that item becomes, whatever is improved beside it.
    """

    def __init__(
        self,
        items: Iterator[Item | Failure],
        *,
        engine: Engine,
        gap: GroupScorer,
        settings: LoopSection,
        margin: float,
        seed: int,
        make_answerer: Callable[[], Engine] | None = None,
        answer_temperature: float = 1.0,
    ) -> None:
        self.items = items
        self.engine, self.gap = engine, gap
        self.answerer: Engine | None = None
        self._make_answerer = make_answerer
        self.settings, self.margin, self.seed = settings, margin, seed
        self.answer_temperature = answer_temperature
        self._more = True
        self._work: dict[int, _Work] = {}
        self._ready: list[_Work] = []
        self._done: list[tuple[Item, Trace] | Failure] = []

    def __iter__(self) -> Iterator[list[tuple[Item, Trace] | Failure]]:
        """Yield lists of what has just been finished.

        Raises:
            InputError: nothing can be had of an engine.
        """
        while True:
            self._read()
            for engine in (self.answerer, self.engine):
                if engine is not None and engine.pending:
                    for finished in engine.step():
                        self._take(finished)
            if self._ready and self._time_to_score():
                self._score()
            if self._done:
                yield self._done
                self._done = []
            if not (self._more or self._work):
                return

    def _read(self) -> None:
        """Begin items until the engines have enough to do."""
        while self._more and self.engine.hungry and (self.answerer is None or self.answerer.hungry):
            item = next(self.items, None)
            if item is None:
                self._more = False
            elif isinstance(item, Failure):
                self._done.append(item)
            else:
                work = self._work[item.number] = _Work(item)
                if item.response is None:
                    self._ask_first(work)
                else:
                    self._begin(work, item.response)

    def _ask_first(self, work: _Work) -> None:
        if self.answerer is None and self._make_answerer is not None:
            self.answerer = self._make_answerer()
        if self.answerer is None:
            self._fail(work, "found no response, expected one, or a policy that answers first (--run or --policy)")
            return
        key = (work.item.number, -1)
        try:
            self.answerer.submit(
                WriteRequest(key, work.item.prompt, "", self.answer_temperature, seed_of(self.seed, *key, 0))
            )
        except InputError as error:
            self._fail(work, str(error))

    def _begin(self, work: _Work, response: str) -> None:
        work.loop = Loop(work.item.prompt, response, self.settings, margin=self.margin)
        self._advance(work, work.loop)

    def _advance(self, work: _Work, loop: Loop) -> None:
        """Ask for what the loop wants next, or let the item go."""
        work.wanted = wanted = loop.next()
        if wanted is None:
            self._done.append((work.item, loop.trace()))
            del self._work[work.item.number]
            return
        work.proposals = [None] * wanted.proposals
        for number in range(wanted.proposals):
            seed = seed_of(self.seed, work.item.number, wanted.round, number)
            request = WriteRequest(
                (work.item.number, number), wanted.prompt, wanted.reference, self.settings.temperature, seed
            )
            try:
                self.engine.submit(request)
            except InputError as error:  # the first one already: they differ in their seeds only
                self._fail(work, str(error))
                return

    def _take(self, finished: Finished) -> None:
        number, part = finished.key
        work = self._work.get(number)
        if work is None:
            return  # another proposal of its round has failed
        if finished.answer is None:
            self._fail(work, finished.failure)
        elif work.loop is None:
            self._begin(work, finished.answer.text)
        else:
            work.proposals[part] = finished.answer
            if None not in work.proposals:
                self._ready.append(work)

    def _time_to_score(self) -> bool:
        return len(self._ready) >= SCORED_TOGETHER or (not self._more and 4 * len(self._ready) >= self.engine.pending)

    def _score(self) -> None:
        ready, self._ready = self._ready, []
        rounds = [
            (work, work.loop, [p for p in work.proposals if p is not None], work.wanted)
            for work in ready
            if work.loop is not None and work.wanted is not None
        ]
        gaps = self.gap.gaps_apart([wanted.improvements(proposals) for _, _, proposals, wanted in rounds])
        for (work, loop, proposals, _), own in zip(rounds, gaps, strict=True):
            loop.take(proposals, own)
            self._advance(work, loop)

    def _fail(self, work: _Work, reason: str) -> None:
        del self._work[work.item.number]
        self._done.append(Failure(work.item.number, work.item.where, reason, work.item.row))
