"""What runs a policy or an improver for a batch job: this process, vLLM, or a server. One protocol for all.

Requests go in at any time, answers come out as they are finished, and whoever drives an engine keeps it busy.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Prompt
from pitlm.data.template import Template
from pitlm.engines.decoding import TOKENS_PER_BATCH, Decoder
from pitlm.engines.endpoint import ChatEndpoint, Completion
from pitlm.models.generators import Improver, Policy

AHEAD = 4
"""An engine wants as many times what it works on in its queue, so that it can choose rows of like length."""


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One answer that is wanted: a better one than ``reference``, or of a policy, a first one.

    Attributes:
        key: given back with the answer.
        seed: of this answer alone.
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


class Engine(Protocol):
    """Writes what it is asked for, in whatever order suits it."""

    @property
    def pending(self) -> int:
        """Requests that are not finished."""

    @property
    def hungry(self) -> bool:
        """Whether it would like more requests."""

    def submit(self, request: WriteRequest) -> None:
        """Take a request.

        Raises:
            InputError: this one cannot be answered.
        """

    def step(self) -> list[Finished]:
        """Work, or wait, for a while; what was finished meanwhile.

        Raises:
            InputError: nothing can be had of this engine.
        """


class LocalEngine:
    """A model in this process; places that fall free are filled at once (:class:`pitlm.engines.decoding.Decoder`).

    Args:
        tokens_per_batch: tokens that the answers in flight may come to, with what they answer.
    """

    def __init__(self, model: Policy | Improver, tokens_per_batch: int = TOKENS_PER_BATCH) -> None:
        tokenizer = model.tokenizer
        self.model = model
        self.decoder = Decoder(
            model.model, end=tokenizer.eos_token_id, pad=tokenizer.pad_token_id, tokens_per_batch=tokens_per_batch
        )
        self.pending = 0

    @property
    def hungry(self) -> bool:
        return self.decoder.waiting_tokens < AHEAD * self.decoder.tokens

    def submit(self, request: WriteRequest) -> None:
        self.decoder.submit(
            request.key,
            self.model.encode(request.prompt, request.reference),
            max_new_tokens=self.model.card.max_new_tokens,
            temperature=request.temperature,
            seed=request.seed,
        )
        self.pending += 1

    def step(self) -> list[Finished]:
        rows = self.decoder.step()
        if not rows:
            return []
        self.pending -= len(rows)
        texts = self.model.tokenizer.batch_decode([row.written for row in rows], skip_special_tokens=True)
        return [
            Finished(row.key, Answer(text.strip(), len(row.written), len(row.prompt)))
            for row, text in zip(rows, texts, strict=True)
        ]


class VLLMEngine:
    """A model in vLLM, by its own continuous batching. Needs the extra ``vllm``.

    Args:
        model: a policy or an improver; only its tokenizer, its template and its limits are used here.
        options: of ``vllm.EngineArgs``.
    """

    WAITING = 512

    def __init__(self, model: Policy | Improver, path: Path, **options: Any) -> None:
        import vllm

        self.model = model
        self._vllm = vllm
        self._engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(model=str(path), **options))
        self._requests: dict[str, tuple[Any, int]] = {}
        self._submitted = 0

    @property
    def pending(self) -> int:
        return len(self._requests)

    @property
    def hungry(self) -> bool:
        return self.pending < self.WAITING

    def submit(self, request: WriteRequest) -> None:
        ids = self.model.encode(request.prompt, request.reference)
        name = str(self._submitted)
        parameters = self._vllm.SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=self.model.card.max_new_tokens,
            stop_token_ids=[self.model.tokenizer.eos_token_id],
        )
        self._engine.add_request(name, {"prompt_token_ids": ids}, parameters)
        self._requests[name] = request.key, len(ids)
        self._submitted += 1

    def step(self) -> list[Finished]:
        finished = []
        for output in self._engine.step():
            if output.finished:
                key, prompt_tokens = self._requests.pop(output.request_id)
                written = list(output.outputs[0].token_ids)
                text = self.model.tokenizer.decode(written, skip_special_tokens=True)
                finished.append(Finished(key, Answer(text.strip(), len(written), prompt_tokens)))
        return finished


class EndpointEngine:
    """A model behind an OpenAI-compatible server, which is shown y_ref as the assistant's turn, and then the ask.

    The server samples as it likes, at the endpoint's temperature; a request's seed only tells it apart from others.

    Args:
        ask: the user's turn after y_ref; None asks for a first answer.
    """

    def __init__(self, endpoint: ChatEndpoint, ask: str | None) -> None:
        self._endpoint = endpoint
        self._template = Template(ask) if ask is not None else None
        self._pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="improve")
        self._asked: dict[Future[list[Completion]], Any] = {}

    @property
    def pending(self) -> int:
        return len(self._asked)

    @property
    def hungry(self) -> bool:
        return self.pending < AHEAD * self._endpoint.concurrency

    def submit(self, request: WriteRequest) -> None:
        conversation = request.prompt
        if self._template is not None:
            conversation = Prompt.of(self._template.improver_messages(request.prompt, request.reference))
        future = self._pool.submit(self._endpoint.complete, [conversation], attempt=request.seed)
        self._asked[future] = request.key

    def step(self) -> list[Finished]:
        done, _ = wait(self._asked, return_when=FIRST_COMPLETED)
        finished = []
        for future in done:
            key = self._asked.pop(future)
            try:
                [made] = future.result()
            except InputError:
                self._pool.shutdown(cancel_futures=True)
                raise
            answer = Answer(made.text.strip(), made.output_tokens, made.input_tokens, made.cost)
            finished.append(Finished(key, None if made.failure else answer, made.failure))
        return finished
