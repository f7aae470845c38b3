"""A model behind an OpenAI-compatible server as an engine."""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Self

from pitlm.core.nouns import Answer, Prompt
from pitlm.data.template import Template
from pitlm.engines.endpoint import ChatEndpoint, Completion
from pitlm.engines.engine import AHEAD, Engine, Finished, ModelSource, WriteRequest


class EndpointEngine(Engine):
    """Asks a server's model, in a conversation with y_ref as the assistant's turn and then ``ask``.

    A request's seed is not sent to the server: it only tells the request apart from others in a cache of replies.

    Args:
        ask: the user's turn after y_ref; None asks for a first answer.
    """

    def __init__(self, endpoint: ChatEndpoint, ask: str | None) -> None:
        self._endpoint = endpoint
        self._template = Template(ask) if ask is not None else None
        self._pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="endpoint")
        self._asked: dict[Future[Completion], Any] = {}

    @classmethod
    def open(cls, source: ModelSource) -> Self:
        """Make an engine that asks the model ``source.model`` at ``source.base_url``."""
        assert source.model is not None
        return cls(ChatEndpoint(source.model, source.base_url, max_tokens=source.max_tokens), source.ask)

    @property
    def pending(self) -> int:
        return len(self._asked)

    @property
    def hungry(self) -> bool:
        return self.pending < AHEAD * self._endpoint.concurrency

    def submit(self, request: WriteRequest) -> None:
        asked = request.prompt
        if self._template is not None:
            asked = Prompt.of(self._template.improver_messages(request.prompt, request.reference))
        asking = self._pool.submit(self._endpoint.ask, asked, temperature=request.temperature, attempt=request.seed)
        self._asked[asking] = request.key

    def step(self) -> list[Finished]:
        try:
            done, _ = wait(self._asked, return_when=FIRST_COMPLETED)
        except BaseException:  # Ctrl-C: a pool works off its queue before the process ends, and each request costs
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise
        finished = []
        for asking in done:
            made = asking.result()
            answer = Answer(made.text.strip(), made.output_tokens, made.input_tokens, made.cost)
            finished.append(Finished(self._asked.pop(asking), None if made.failure else answer, made.failure))
        return finished
