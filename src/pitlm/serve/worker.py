"""One process that owns improver and gap model; what many requests ask of them is done in batches.

A process, not a thread: torch would hold up the event loop, and a model that runs out of memory, hangs or is killed
must not take the proxy along.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Improvement, Prompt
from pitlm.core.recipe import Quantization
from pitlm.loop.loop import GapScorer, Proposer
from pitlm.serve.live_loop import Unavailable, Unfit

log = logging.getLogger("pitlm.serve")

BATCH_SECONDS = 0.004  # how long the first of a batch waits for others
LONGEST_PAUSE = 60.0  # between two attempts to start the models again


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """What the process has loaded; either may be missing."""

    improver: Proposer | None
    scorer: GapScorer | None


def load_models(
    improver: Path | None,
    gap: Path | None,
    reward: Path | None = None,
    *,
    dtype: str = "float32",
    quantize: Quantization | None = None,
) -> LoadedModels:
    """Load checkpoints, over one base where they are adapters; imports torch, so only the worker's process calls it.

    Args:
        reward: of an R_P that has to agree with the gap model.
        quantize: how their weights are held; see :class:`pitlm.models.adapters.Bases`.

    Raises:
        InputError: no checkpoint of the right kind there.
    """
    from pitlm.models.adapters import Bases
    from pitlm.models.generators import Improver
    from pitlm.models.loading import quiet
    from pitlm.models.scorers import GapModel, GuardedGap

    quiet()
    bases = Bases(dtype, quantize)
    scorer: GapScorer | None = None
    if gap is not None and reward is not None:
        scorer = GuardedGap.from_pretrained(gap, reward, bases=bases)
    elif gap is not None:
        scorer = GapModel.from_pretrained(gap, bases=bases)
    return LoadedModels(None if improver is None else Improver.from_pretrained(improver, bases=bases), scorer)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What jobs have in common that can be done together. A seed of its own is never shared: same seed, same answer."""

    propose: bool
    temperature: float = 0.0
    seed: int | None = None


@dataclass(slots=True)
class _Job:
    kind: _Kind
    item: Improvement
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Worker:
    """Improver and gap model in a process of their own, asked as a proposer and a scorer of `driver` are.

    Args:
        load: makes the models; called in the new process, so it has to be importable there.
        patience: seconds after which a batch counts as hung, and the process is replaced.
        largest: jobs done together.
        observe: told the size of each batch.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModels],
        *,
        patience: float,
        largest: int = 32,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self.ready = False
        self._load = load
        self._margin = 0.0
        self._patience = patience
        self._largest = largest
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._numbers = itertools.count()
        self._thread = ThreadPoolExecutor(1, "pit-worker")
        self._process: Any = None
        self._pipe: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the models.

        Raises:
            InputError: they cannot be loaded.
        """
        await self._begin()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the process; jobs that are still there are refused."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._end("the server stops")
        self._thread.shutdown(wait=False)

    async def propose(
        self, prompt: Prompt, reference: str, *, temperature: float, seed: int | None, max_tokens: int | None
    ) -> Answer:
        """See :class:`pitlm.serve.live_loop.AsyncProposer`. Nothing is cut at ``max_tokens``."""
        answer: Answer = await self._do(_Kind(True, temperature, seed), Improvement(prompt, reference, ""))
        return answer

    async def margin(self) -> float:
        """See :class:`pitlm.serve.live_loop.AsyncScorer`."""
        self._check()
        return self._margin

    async def gap(self, item: Improvement) -> float:
        """See :class:`pitlm.serve.live_loop.AsyncScorer`."""
        return float(await self._do(_Kind(False), item))

    async def _do(self, kind: _Kind, item: Improvement) -> Any:
        self._check()
        job = _Job(kind, item)
        self._jobs.append(job)
        self._arrived.set()
        return await job.done

    def _check(self) -> None:
        if not self.ready:
            raise Unavailable("the models are being started again")

    async def _run(self) -> None:
        while True:
            if not self._jobs:
                self._arrived.clear()
                await self._arrived.wait()
                await asyncio.sleep(BATCH_SECONDS)
            batch = self._take()
            if not batch:
                continue
            self._observe(len(batch))
            try:
                self._settle(batch, await self._exchange(batch))
            except Exception as error:  # whatever it is, nobody may wait for this task in vain
                why = "hung" if isinstance(error, TimeoutError) else f"died ({type(error).__name__})"
                log.error("the models' process %s; it is started again", why)
                self._end(f"the models' process {why}", batch)
                await self._begin_again()

    def _take(self) -> list[_Job]:
        """The oldest job that somebody still waits for, and those that can be done with it."""
        waiting = [job for job in self._jobs if not job.done.done()]
        kind = waiting[0].kind if waiting else None
        alone = kind is not None and kind.seed is not None
        batch = [job for job in waiting if job.kind == kind][: 1 if alone else self._largest]
        taken = set(map(id, batch))
        self._jobs = deque(job for job in waiting if id(job) not in taken)
        return batch

    async def _exchange(self, batch: Sequence[_Job]) -> list[tuple[bool, Any]]:
        kind, pipe = batch[0].kind, self._pipe
        assert pipe is not None
        seed = next(self._numbers) if kind.seed is None else kind.seed % 2**31  # clients send any number
        message = (kind.propose, [job.item for job in batch], kind.temperature, seed)

        def talk() -> list[tuple[bool, Any]]:
            pipe.send(message)
            if not pipe.poll(self._patience):
                raise TimeoutError
            replies: list[tuple[bool, Any]] = pipe.recv()
            return replies

        return await asyncio.get_running_loop().run_in_executor(self._thread, talk)

    def _settle(self, batch: Sequence[_Job], replies: Sequence[tuple[bool, Any]]) -> None:
        for job, (fine, value) in zip(batch, replies, strict=True):
            if job.done.done():
                continue
            if fine:
                job.done.set_result(value)
            else:
                job.done.set_exception(value if isinstance(value, Unfit) else Unavailable(value))

    async def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._load), daemon=True, name="pit-models")
        self._process.start()
        theirs.close()
        self._pipe = pipe
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, pipe.recv)
        except EOFError:
            answer = InputError("the models could not be loaded: their process ended (out of memory?)")
        if isinstance(answer, InputError):
            raise answer
        self._margin = answer or 0.0
        self.ready = True

    async def _begin_again(self) -> None:
        pause = 1.0
        while not self.ready:
            try:
                await self._begin()
            except (InputError, OSError) as error:
                log.error("%s; next attempt in %.0f s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _end(self, why: str, batch: Sequence[_Job] = ()) -> None:
        self.ready = False
        jobs, self._jobs = [*batch, *self._jobs], deque()
        self._settle(jobs, [(False, why)] * len(jobs))
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()


def _work(pipe: Connection, load: Callable[[], LoadedModels]) -> None:
    """The process: load, then answer batch after batch until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends this process when what is in flight is done
    try:
        models = load()
    except InputError as error:
        pipe.send(InputError(str(error)))
        return
    except ModuleNotFoundError as error:
        pipe.send(InputError(f"{error.name} is not installed, which local models need: pip install 'pitlm[train]'"))
        return
    pipe.send(getattr(models.scorer, "margin", None))
    with suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(_answers(models, *pipe.recv()))


def _answers(
    models: LoadedModels, propose: bool, items: Sequence[Improvement], temperature: float, seed: int
) -> list[tuple[bool, Any]]:
    """The batch's answers; if it fails (out of memory, one item that is too long), those of each item alone."""
    try:
        if propose:
            assert models.improver is not None
            prompts, references = [item.prompt for item in items], [item.reference for item in items]
            return [(True, a) for a in models.improver.propose(prompts, references, temperature=temperature, seed=seed)]
        assert models.scorer is not None
        return [(True, float(gap)) for gap in models.scorer.gaps(items)]
    except Exception as error:  # whatever a model raises, the requests beside it go on
        if len(items) > 1:
            return [reply for item in items for reply in _answers(models, propose, [item], temperature, seed)]
        if isinstance(error, InputError):
            return [(False, Unfit(str(error)))]
        return [(False, f"{type(error).__name__} in the {'improver' if propose else 'gap model'}")]
