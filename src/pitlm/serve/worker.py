"""The server's side of the models' process: sends it requests, and replaces a process that died or hangs.

The models run in a process, not in a thread, because torch in a thread would hold up the event loop. And when a model
runs out of memory, hangs or is killed, the proxy goes on.
"""

import asyncio
import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Improvement
from pitlm.engines.engine import WriteRequest
from pitlm.loop.live_loop import ProposalRequest, Unavailable
from pitlm.serve.model_process import GapRequest, LoadedModels, Reply, Request, work
from pitlm.serve.settings import Settings

log = logging.getLogger("pitlm.serve")

LONGEST_PAUSE = 60.0  # seconds between two attempts to start the models again


@dataclass(eq=False, slots=True)
class Job:
    """A request that somebody waits for.

    Attributes:
        alone: the process may have no other request meanwhile.
    """

    request: Request
    alone: bool = False
    reply: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Worker:
    """Improver and gap model in a process of their own, as the proposer and scorer of :mod:`pitlm.loop.live_loop`.

    Args:
        load: loads the models. The new process imports and calls this function.
        settings: the most requests that the process has at once (``batch``). A process that says nothing for twice the
            time limit of an answer (``improve_seconds``) counts as hung, and is replaced.
        observe: called with the number of requests in the process, whenever the process gets new requests.
    """

    def __init__(self, load: Callable[[], LoadedModels], settings: Settings, observe: Callable[[int], object]) -> None:
        self.ready = False
        self._load, self._settings, self._observe = load, settings, observe
        self._margin, self._exact = 0.0, True
        self._keys = count()
        self._waiting: deque[Job] = deque()
        self._inside: dict[int, Job] = {}  # the jobs that the process works on, by key
        self._arrived = asyncio.Event()
        self._process: Any = None
        self._pipe: Any = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the models.

        Raises:
            InputError: the models cannot be loaded.
        """
        await self._begin()
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """End the process. Requests without a reply fail with Unavailable."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._end("the server stops")

    async def propose(self, request: ProposalRequest) -> Answer:
        """See :class:`pitlm.loop.live_loop.AsyncProposer`. ``max_tokens`` does not cut the answer."""
        key, seed = next(self._keys), request.seed
        alone = seed is not None and not self._exact  # other requests in the batch could change the rounding
        seed = (key if seed is None else seed) % 2**31  # a client may send any number
        writing = WriteRequest(key, request.prompt, request.reference, request.temperature, seed)
        answer: Answer = await self._do(Job(writing, alone))
        return answer

    async def margin(self) -> float:
        """See :class:`pitlm.loop.live_loop.AsyncScorer`."""
        self._check()
        return self._margin

    async def gap(self, item: Improvement) -> float:
        """See :class:`pitlm.loop.live_loop.AsyncScorer`."""
        return float(await self._do(Job(GapRequest(next(self._keys), item))))

    async def _do(self, job: Job) -> Any:
        self._check()
        self._waiting.append(job)
        self._arrived.set()
        return await job.reply

    def _check(self) -> None:
        if not self.ready:
            raise Unavailable("the models are being started again")

    async def _run(self) -> None:
        """Exchange requests for replies as long as there are requests; start the models again when they fail."""
        while True:
            if not self._waiting and not self._inside:
                self._arrived.clear()
                await self._arrived.wait()
            try:
                self._settle(await asyncio.to_thread(self._exchange, self._take()))
            except Exception as error:  # any error: if this task ended, its requests would wait for ever
                why = "hung" if isinstance(error, TimeoutError) else f"died ({type(error).__name__})"
                log.error("the models' process %s; it is started again", why)
                self._end(f"the models' process {why}")
                await self._begin_again()

    def _take(self) -> list[Request]:
        """The oldest waiting requests, as many as the process may take. Requests whose client is gone are dropped."""
        new = []
        while self._waiting:
            alone = any(job.alone for job in (self._waiting[0], *self._inside.values()))
            if len(self._inside) >= (1 if alone else self._settings.batch):
                break
            job = self._waiting.popleft()
            if not job.reply.done():
                self._inside[job.request.key] = job
                new.append(job.request)
        if new:
            self._observe(len(self._inside))
        return new

    def _exchange(self, new: list[Request]) -> list[Reply]:
        """Send new requests to the process. Return the replies that are ready after a short time.

        Raises:
            TimeoutError: the process hangs.
        """
        self._pipe.send(new)
        if not self._pipe.poll(2 * self._settings.improve_seconds):
            raise TimeoutError
        return list(self._pipe.recv())

    def _settle(self, replies: Iterable[Reply]) -> None:
        for key, value in replies:
            reply = self._inside.pop(key).reply
            if reply.done():
                continue
            if isinstance(value, Exception):
                reply.set_exception(value)
            else:
                reply.set_result(value)

    async def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, self._load), daemon=True, name="pit-models")
        self._process.start()
        theirs.close()
        try:
            answer = await asyncio.to_thread(self._pipe.recv)
        except EOFError:
            answer = InputError("the models could not be loaded: their process ended (out of memory?)")
        if isinstance(answer, InputError):
            raise answer
        self._margin, self._exact = answer
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

    def _end(self, why: str) -> None:
        self.ready = False
        self._inside |= {job.request.key: job for job in self._waiting}
        self._waiting.clear()
        self._settle([(key, Unavailable(why)) for key in self._inside])
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
