"""The one protocol for everything that writes text: a model in this process, vLLM, or an OpenAI-compatible server.

An engine takes requests at any time, and returns each answer when it is finished. The caller keeps the engine busy.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pitlm.core.nouns import Answer, Prompt
from pitlm.io.named_parts import find_part

if TYPE_CHECKING:
    from pitlm.models.adapters import Bases

ENGINES = {
    "transformers": "pitlm.engines.local_engine:LocalEngine.open",
    "vllm": "pitlm.engines.vllm_engine:VLLMEngine.open",
    "endpoint": "pitlm.engines.endpoint_engine:EndpointEngine.open",
}
"""The engines of pitlm by name; another package adds its own with an entry point of the group ``pitlm.engines``.
Each is a function that takes a :class:`ModelSource` and returns an :class:`Engine`."""

AHEAD = 4
"""An engine is hungry until this many times its capacity waits, so that it can run rows of similar length together."""


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """A request for one answer: a better answer than ``reference``, or, from a policy, a first answer.

    Attributes:
        key: names the request, and comes back with the answer.
        seed: the seed of this answer alone.
    """

    key: Any
    prompt: Prompt
    reference: str
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer to a request, or why there is none."""

    key: Any
    answer: Answer | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The model that an engine is opened for, and its limits.

    Attributes:
        folder: the checkpoint; None if the model is behind a server.
        bases: opens the checkpoint over a base model that several checkpoints share.
        tokens_per_batch: tokens in flight at once, prompts included; None is the engine's default.
        model: the model's name on the server at ``base_url``.
        max_tokens: longest answer of a server's model; None leaves that to the server.
        ask: the user's turn after y_ref; None for a policy.
    """

    kind: Literal["policy", "improver"]
    folder: Path | None = None
    bases: Bases | None = None
    tokens_per_batch: int | None = None
    model: str | None = None
    base_url: str | None = None
    max_tokens: int | None = None
    ask: str | None = None


class Engine(ABC):
    """Writes answers, in any order.

    Attributes:
        exact: whether an answer is the same to the last bit, whatever other answers are written at the same time.
    """

    exact = False

    @property
    @abstractmethod
    def pending(self) -> int:
        """Number of requests that are not finished."""

    @property
    @abstractmethod
    def hungry(self) -> bool:
        """Whether more requests would keep the engine busier."""

    @abstractmethod
    def submit(self, request: WriteRequest) -> None:
        """Take a request.

        Raises:
            InputError: this request can never be answered.
        """

    @abstractmethod
    def step(self) -> list[Finished]:
        """Work, or wait, for a while; returns the requests that were finished meanwhile.

        Raises:
            InputError: the engine can answer nothing at all.
        """

    def write(self, requests: Sequence[WriteRequest]) -> list[Finished]:
        """Answer all requests, failures included, in their order. Nothing else may be pending.

        Raises:
            InputError: as :meth:`submit` and :meth:`step` do.
        """
        for number, request in enumerate(requests):
            self.submit(replace(request, key=number))
        done: dict[int, Finished] = {}
        while len(done) < len(requests):
            done |= {finished.key: finished for finished in self.step()}
        return [replace(done[number], key=request.key) for number, request in enumerate(requests)]

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seed: int) -> list[Answer | None]:
        """One first answer per prompt; None for an answer that failed.

        With this method Self-Refine can ask an engine in place of a :class:`pitlm.engines.generators.Policy`.
        """
        requests = [WriteRequest(n, prompt, "", temperature, seed_of(seed, n)) for n, prompt in enumerate(prompts)]
        return [finished.answer for finished in self.write(requests)]


def open_engine(name: str, source: ModelSource) -> Engine:
    """Open the engine that the option ``--engine`` calls ``name`` for a model.

    Raises:
        InputError: no engine has this name, or it cannot run this model.
    """
    engine: Engine = find_part("pitlm.engines", ENGINES, name, where="--engine")(source)
    return engine


def seed_of(seed: int, *path: int) -> int:
    """The seed of one answer, below 2**31, from the seed of the job and numbers that identify the answer."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()[:4], "big") >> 1
