"""Improver and gap model that others serve, so that the proxy itself needs no torch."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx

from pitlm.core.nouns import Answer, Improvement, Prompt
from pitlm.data.template import Template
from pitlm.serve.connections import Connections
from pitlm.serve.live_loop import Unavailable


class _Remote:
    """One JSON endpoint; its time limit is the loop's."""

    def __init__(self, base: str, key: str | None) -> None:
        self._connections = Connections(base, None)
        self._headers = [(b"content-type", b"application/json")]
        if key is not None:
            self._headers.append((b"authorization", f"Bearer {key}".encode()))
        self.close = self._connections.close

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None, what: str) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        try:
            async with self._connections.response(method, path, self._headers, content) as response:
                reply = await response.aread()
                if response.status_code != 200:
                    raise Unavailable(f"the {what} failed (status {response.status_code})")
            return json.loads(reply)
        except (httpx.RequestError, ValueError) as error:
            raise Unavailable(f"the {what} failed ({type(error).__name__})") from error


class RemoteImprover(_Remote):
    """An improver behind any OpenAI-compatible server.

    Args:
        base: the server's URL, with its ``/v1``.
        model: the name that the server knows it by.
        ask: the turn after y_ref that it was trained with.
    """

    def __init__(self, base: str, *, model: str, ask: str, key: str | None = None) -> None:
        super().__init__(base, key)
        self._model = model
        self._template = Template(ask)

    async def propose(
        self, prompt: Prompt, reference: str, *, temperature: float, seed: int | None, max_tokens: int | None
    ) -> Answer:
        """See :class:`pitlm.serve.live_loop.AsyncProposer`."""
        messages = self._template.improver_messages(prompt, reference)
        body: dict[str, Any] = {"model": self._model, "messages": messages, "temperature": temperature}
        if seed is not None:
            body["seed"] = seed
        if max_tokens is not None:
            body["max_tokens"] = max_tokens + 1  # one more than allowed: a longer answer shows itself, and is refused
        reply = await self._ask("POST", "/chat/completions", body, "improver")
        try:
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            written, read = int(usage.get("completion_tokens", 0)), int(usage.get("prompt_tokens", 0))
            if max_tokens is not None and choice.get("finish_reason") == "length":
                written = max(written, max_tokens + 1)  # also where the server counts no tokens
            return Answer(str(choice["message"]["content"] or ""), written, read)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Unavailable("the improver's reply is no chat completion") from error


class RemoteScorer(_Remote):
    """A gap model behind another ``pit serve``.

    Args:
        base: that server's URL, with its ``/v1``.
    """

    def __init__(self, base: str, *, key: str | None = None) -> None:
        super().__init__(base, key)
        self._margin: float | None = None

    async def margin(self) -> float:
        """See :class:`pitlm.serve.live_loop.AsyncScorer`. Asked for once."""
        if self._margin is None:
            reply = await self._ask("GET", "/score", None, "gap model")
            self._margin = math.inf if (margin := _number(reply, "margin")) is None else margin
        return self._margin

    async def gap(self, item: Improvement) -> float:
        """See :class:`pitlm.serve.live_loop.AsyncScorer`."""
        body = {"prompt": item.prompt.as_messages(), "reference": item.reference, "response": item.response}
        gap = _number(await self._ask("POST", "/score", body, "gap model"), "gap")
        return math.nan if gap is None else gap


def _number(reply: Any, name: str) -> float | None:
    try:
        value = reply[name]
        return None if value is None else float(value)
    except (LookupError, TypeError, ValueError) as error:
        raise Unavailable(f"the gap model's reply has no {name}") from error
