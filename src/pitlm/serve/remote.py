"""Improver and gap model that other servers have, so that the proxy itself needs no torch."""

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Improvement, Prompt
from pitlm.data.template import Template
from pitlm.engines.endpoint import ChatEndpoint
from pitlm.serve.live_loop import Unavailable
from pitlm.serve.proxying import Connections
from pitlm.serve.responses import ApiError


class RemoteImprover:
    """An improver behind any OpenAI-compatible server.

    Args:
        ask: the turn after y_ref that the improver was trained with.
    """

    def __init__(self, endpoint: ChatEndpoint, ask: str) -> None:
        self._endpoint = endpoint
        self._template = Template(ask)
        self._threads = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="improver")

    async def aclose(self) -> None:
        """Ask no more; calls under way end in the background."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def propose(
        self, prompt: Prompt, reference: str, *, temperature: float, seed: int | None, max_tokens: int | None
    ) -> Answer:
        """See :class:`pitlm.serve.live_loop.AsyncProposer`."""
        limit = None if max_tokens is None else max_tokens + 1  # a longer answer shows itself, and is refused
        messages = self._template.improver_messages(prompt, reference)
        ask = partial(self._endpoint.ask, messages, temperature=temperature, seed=seed, max_tokens=limit)
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except InputError as error:
            self._endpoint.given_up = None  # the server may come back
            raise Unavailable(f"the improver failed ({type(error.__cause__).__name__})") from error
        if made.failure:  # named by its kind alone, because the server's words may quote the conversation
            raise Unavailable(f"the improver failed ({made.failure.partition(':')[0]})")
        written = made.output_tokens
        if limit is not None and made.finish == "length":
            written = max(written, limit)  # also where the server counts no tokens
        return Answer(made.text, written, made.input_tokens)


class RemoteScorer:
    """A gap model behind another ``pit serve``; how long to wait for it is the loop's matter.

    Args:
        base: that server's URL, with its ``/v1``.
    """

    def __init__(self, base: str, *, key: str | None = None) -> None:
        self._connections = Connections(base, key=key)
        self._margin: float | None = None
        self.aclose = self._connections.aclose

    async def margin(self) -> float:
        """See :class:`pitlm.serve.live_loop.AsyncScorer`. Asked for once."""
        if self._margin is None:
            margin = await self._ask("GET", None, "margin")
            self._margin = math.inf if margin is None else margin
        return self._margin

    async def gap(self, item: Improvement) -> float:
        """See :class:`pitlm.serve.live_loop.AsyncScorer`."""
        body = {"prompt": item.prompt.as_messages(), "reference": item.reference, "response": item.response}
        gap = await self._ask("POST", body, "gap")
        return math.nan if gap is None else gap

    async def _ask(self, method: str, body: dict[str, Any] | None, name: str) -> float | None:
        """The number called ``name`` in the reply; None where the server has no such number."""
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
