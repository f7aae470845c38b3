"""An improver and a gap model on other servers, for a proxy that needs no torch."""

import json
import math
from typing import Any

from pitlm.core.errors import loading
from pitlm.core.nouns import Answer, Improvement
from pitlm.data.template import Template
from pitlm.engines.endpoint import check_url, read_completion
from pitlm.loop.live_loop import ProposalRequest, Unavailable
from pitlm.serve.proxying import Connections
from pitlm.serve.settings import Settings
from pitlm.serve.web import ApiError


class RemoteImprover:
    """An improver behind any OpenAI-compatible server.

    Args:
        settings: has the server's URL (``improver``), the improver's name there (``improver_model``), the turn that
            follows y_ref (``ask``), the key (``models_key``) and the time limit of a call
            (``improve_seconds``).
        retries: how often a failed call is repeated.
    """

    def __init__(self, settings: Settings, *, retries: int = 1) -> None:
        import openai  # takes a second

        self._model, self._template = settings.improver_model, Template(settings.ask)
        key = settings.models_key or "none"  # else openai sends OPENAI_API_KEY, a key for another server
        how: dict[str, Any] = {"timeout": settings.improve_seconds, "max_retries": retries}
        check_url(str(settings.improver), "--improver")
        with loading(settings.improver, "connection"):
            self._client = openai.AsyncOpenAI(api_key=key, base_url=settings.improver, **how)
        self.aclose = self._client.close

    async def propose(self, request: ProposalRequest) -> Answer:
        """See :class:`pitlm.loop.live_loop.AsyncProposer`."""
        import openai

        # One token more than allowed, so that an answer that is too long can be told from an answer that just fits.
        limit = None if request.max_tokens is None else request.max_tokens + 1
        messages: Any = self._template.improver_messages(request.prompt, request.reference)
        fields = {"temperature": request.temperature, "seed": request.seed, "max_tokens": limit}
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            create = self._client.chat.completions.with_raw_response.create
            reply = await create(model=self._model, messages=messages, extra_body=given)
        except openai.OpenAIError as error:  # only the type: messages may quote the conversation
            raise Unavailable(f"the improver failed ({type(error).__name__})") from error
        made = read_completion(reply.content.decode(errors="replace"), None)
        if made.failure:
            raise Unavailable("the improver failed (no chat completion in the response)")
        written = made.output_tokens
        if limit is not None and made.finish == "length":
            written = max(written, limit)  # the server may count no tokens
        return Answer(made.text, written, made.input_tokens)


class RemoteScorer:
    """A gap model behind another ``pit serve``. Calls have no time limit of their own, because the loop has one.

    Args:
        base: URL of the other server, with ``/v1``.
    """

    def __init__(self, base: str, *, key: str | None = None) -> None:
        self._connections = Connections(base, key=key, name="--gap")
        self._margin: float | None = None
        self.aclose = self._connections.aclose

    async def margin(self) -> float:
        """See :class:`pitlm.loop.live_loop.AsyncScorer`. The other server is asked only once."""
        if self._margin is None:
            margin = await self._ask("GET", None, "margin")
            self._margin = margin if margin is not None and margin >= 0 else math.inf  # so that nothing is accepted
        return self._margin

    async def gap(self, item: Improvement) -> float:
        """See :class:`pitlm.loop.live_loop.AsyncScorer`."""
        body = {"prompt": item.prompt.as_messages(), "reference": item.reference, "response": item.response}
        gap = await self._ask("POST", body, "gap")
        return math.nan if gap is None else gap

    async def _ask(self, method: str, body: dict[str, Any] | None, name: str) -> float | None:
        """The number called ``name`` in the reply; None if the server has no such number."""
        headers, content = [(b"content-type", b"application/json")], b"" if body is None else json.dumps(body).encode()
        try:
            async with self._connections.response(method, "/score", headers, content) as response:
                reply = await response.aread()
                if response.status_code != 200:
                    raise Unavailable(f"the gap model failed (status {response.status_code})")
            value = json.loads(reply)[name]
            return None if value is None else float(value)
        except ApiError as error:
            raise Unavailable(f"the gap model failed ({type(error.__cause__).__name__})") from error
        except (LookupError, TypeError, ValueError) as error:
            raise Unavailable(f"the gap model's reply has no {name}") from error
