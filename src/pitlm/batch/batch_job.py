"""A batch job: a stream of items, each in a loop of its own. All loops share the capacity of the engine.

No item waits for a round of another item. The job submits the next requests of an item as soon as its loop knows them.
When a proposal is finished, its place in the engine goes to the next request of any item.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Improvement, Trace
from pitlm.data.items import Failure, Item
from pitlm.engines.engine import Engine, Finished, WriteRequest, seed_of
from pitlm.loop.loop import Loop
from pitlm.models.scorers import Gaps

SCORED_TOGETHER = 64
"""Number of rounds whose gaps are scored in one call. After the last item was read, a call may have fewer."""

Step = tuple[Engine | None, list[WriteRequest]] | list[Improvement]
"""The next step of an item: requests to an engine (None if there is no engine), or improvements to score."""


@dataclass(eq=False, slots=True)
class _Work:
    """One item in its loop, and the answers that it waits for."""

    item: Item
    steps: Generator[Step, Any, Trace]
    answers: list[Answer | None] = field(default_factory=list)


@dataclass(eq=False)
class BatchJob:
    """Improves a stream of items. Iterate over the job to get the items in the order in which they are finished.

    Attributes:
        items: the job reads as many as keep the engine busy; a failure among them is passed on.
        margin: the gap that a proposal has to exceed.
        seed: makes, with an item's number, the seeds of the item's answers. So its result depends on no other item.
        make_answerer: opens the engine that answers items without a response; called when the first of them comes.
        answer_temperature: sampling temperature of these first answers.
    """

    items: Iterator[Item | Failure]
    _: KW_ONLY
    engine: Engine
    gap: Gaps
    settings: LoopSection
    margin: float
    seed: int
    make_answerer: Callable[[], Engine] | None = None
    answer_temperature: float = 1.0

    def __post_init__(self) -> None:
        self._answerer: Engine | None = None
        self._more = True
        self._work: dict[int, _Work] = {}
        self._ready: list[tuple[_Work, list[Improvement]]] = []  # items that wait for gaps, each with its proposals
        self._done: list[tuple[Item, Trace] | Failure] = []

    def __iter__(self) -> Iterator[list[tuple[Item, Trace] | Failure]]:
        """Yield lists of the items that have just finished, with their traces, and of failures.

        Raises:
            InputError: an engine can answer nothing at all.
        """
        while True:
            self._read()
            for engine in (self._answerer, self.engine):
                if engine is not None and engine.pending:
                    for finished in engine.step():
                        self._take(finished)
            idle = not self._more and 4 * len(self._ready) >= self.engine.pending
            if self._ready and (idle or len(self._ready) >= SCORED_TOGETHER):
                ready, self._ready = self._ready, []
                gaps = self.gap.gaps_apart([improvements for _, improvements in ready])
                for (work, _), own in zip(ready, gaps, strict=True):
                    self._go_on(work, own)
            if self._done:
                yield self._done
                self._done = []
            if not (self._more or self._work):
                return

    def _improve(self, item: Item) -> Generator[Step, Any, Trace]:
        """Take one item through its loop. Yield each step, receive its results, and in the end return the trace."""
        response = item.response
        if response is None:
            if self._answerer is None and self.make_answerer is not None:
                self._answerer = self.make_answerer()
            seed = seed_of(self.seed, item.number, -1, 0)
            request = WriteRequest((item.number, 0), item.prompt, "", self.answer_temperature, seed)
            [first] = yield self._answerer, [request]
            response = first.text
        loop = Loop(item.prompt, response, self.settings, margin=self.margin)
        while loop.begin_round():
            asked, played = (item.prompt, loop.best, self.settings.temperature), len(loop.rounds)
            seeds = [seed_of(self.seed, item.number, played, number) for number in range(self.settings.proposals)]
            requests = [WriteRequest((item.number, number), *asked, seed) for number, seed in enumerate(seeds)]
            proposals = yield self.engine, requests
            gaps = yield [Improvement(item.prompt, loop.best, proposal.text) for proposal in proposals]
            loop.take(proposals, gaps)
        return loop.trace()

    def _read(self) -> None:
        """Begin items until the engines have enough to do."""
        while self._more and self.engine.hungry and (self._answerer is None or self._answerer.hungry):
            item = next(self.items, None)
            if item is None:
                self._more = False
            elif isinstance(item, Failure):
                self._done.append(item)
            else:
                self._work[item.number] = _Work(item, self._improve(item))
                self._go_on(self._work[item.number], None)

    def _go_on(self, work: _Work, given: list[Answer | None] | list[float] | None) -> None:
        """Give an item the results that it waited for. Then start its next step, or finish the item."""
        try:
            step = work.steps.send(given)
        except StopIteration as ended:
            self._done.append((work.item, ended.value))
            del self._work[work.item.number]
            return
        if isinstance(step, list):
            self._ready.append((work, step))
            return
        engine, requests = step
        if engine is None:
            self._fail(work, "found no response, expected one, or a policy that answers first (--run or --policy)")
            return
        work.answers = [None] * len(requests)
        try:
            for request in requests:
                engine.submit(request)
        except InputError as error:  # the first request fails already: only their seeds differ
            self._fail(work, str(error))

    def _take(self, finished: Finished) -> None:
        number, part = finished.key
        work = self._work.get(number)
        if work is None:
            return  # another proposal of its round has failed
        if finished.answer is None:
            self._fail(work, finished.failure)
            return
        work.answers[part] = finished.answer
        if None not in work.answers:
            self._go_on(work, work.answers)

    def _fail(self, work: _Work, reason: str) -> None:
        del self._work[work.item.number]
        self._done.append(Failure(work.item.number, work.item.where, reason, work.item.row))
