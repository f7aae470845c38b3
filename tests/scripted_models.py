"""Scripted improvers and gap models: some to await, some for a separate process."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict, dataclass, field

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer
from pitlm.engines.engine import Engine, Finished
from pitlm.loop.live_loop import Unavailable
from pitlm.serve.model_process import LoadedModels


@dataclass
class Writer:
    """Appends `` Better`` to a reference; writes 3 tokens and reads 10."""

    suffix: str = " Better"
    tokens: int = 3
    seconds: float = 0.0
    failure: str = ""
    asked: list[dict] = field(default_factory=list)

    async def propose(self, request):
        self.asked.append(asdict(request) | {"prompt": request.prompt})
        await asyncio.sleep(self.seconds)
        if self.failure:
            raise Unavailable(self.failure)
        return Answer(request.reference + self.suffix, self.tokens, 10)


@dataclass
class Judge:
    """Scores the first ``likes`` of `` Better`` 1 each, and every further one -1."""

    likes: int = 2
    seconds: float = 0.0
    failure: str = ""
    calibrated: float = 0.5

    async def margin(self):
        return self.calibrated

    async def gap(self, item):
        await asyncio.sleep(self.seconds)
        if self.failure:
            raise Unavailable(self.failure)
        return 1.0 if item.response.count("Better") <= self.likes else -1.0


class ProcessEngine(Engine):
    """``die`` ends the process, ``hang`` never answers, ``fail`` raises alone and in company; every answer says how
    many were written with it."""

    hungry = exact = True

    def __init__(self):
        self.queue = []

    @property
    def pending(self):
        return len(self.queue)

    def submit(self, request):
        if request.prompt.text == "too long":
            raise InputError("found a conversation of 99 tokens, expected at most 9")
        self.queue.append(request)

    def step(self):
        texts = [request.prompt.text for request in self.queue]
        if "die" in texts:
            os._exit(1)
        if "hang" in texts:
            time.sleep(60)
        if "fail" in texts:
            raise MemoryError("a secret of the conversation")
        done, self.queue = self.queue, []
        return [
            Finished(r.key, Answer(f"{r.prompt.text} with {len(done)} at {r.temperature} seed {r.seed}", 2, 3))
            for r in done
        ]


class ProcessJudge:
    margin = 0.25

    def gaps(self, items):
        return [float(len(item.response) - len(item.reference)) for item in items]


def both() -> LoadedModels:
    return LoadedModels(ProcessEngine, ProcessJudge())


class InexactEngine(ProcessEngine):
    exact = False


def inexact() -> LoadedModels:
    return LoadedModels(InexactEngine, ProcessJudge())


def missing() -> LoadedModels:
    raise InputError("nowhere: found no such folder")


def bare() -> LoadedModels:
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def killed() -> LoadedModels:
    os._exit(9)
