"""The endpoints in front of the upstream: chat completions, whose answers are improved, and the rest, passed through.

They are plain ASGI applications: no layer of a framework stands between the upstream's bytes and the client's.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import httpx

from pitlm.serve.chat_completions import ChatReply, Wish, events, read_wish
from pitlm.serve.connections import Connections, end_to_end
from pitlm.serve.live_loop import Improving
from pitlm.serve.metrics import Metrics
from pitlm.serve.responses import ApiError, Headers, Receive, Scope, Send, respond

PREFIX = len("/v1")
COMMENT = b": pit\n\n"
"""An event that clients skip; it keeps connections open while there is nothing to say."""


class PassThrough:
    """Sends every request to the upstream and its response back, byte for byte."""

    def __init__(self, upstream: Connections) -> None:
        self.upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._response(scope, scope["pit.body"]) as response:
            await relay(response, [], send)

    def _response(self, scope: Scope, body: bytes) -> AbstractAsyncContextManager[httpx.Response]:
        path = (scope.get("raw_path") or scope["path"].encode()).decode("ascii")[PREFIX:]
        if "/.." in scope["path"]:
            raise ApiError(404, "not_found", "No such path.")
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        return self.upstream.response(scope["method"], path + query.decode("ascii"), scope["headers"], body)


class ChatCompletions(PassThrough):
    """``/v1/chat/completions``: the upstream's answer is y_0, the loop's is sent."""

    def __init__(
        self, upstream: Connections, improving: Improving | None, metrics: Metrics, *, heartbeat: float
    ) -> None:
        super().__init__(upstream)
        self.improving, self.metrics, self.heartbeat = improving, metrics, heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        switch = next((value for name, value in scope["headers"] if name == b"x-pit"), b"")
        wish = read_wish(scope["pit.body"], b"off" if self.improving is None else switch)
        async with self._response(scope, wish.body) as response:
            if wish.prompt is None or response.status_code != 200 or "content-encoding" in response.headers:
                await relay(response, self._passed(wish.obstacle or "upstream's answer"), send)
            elif _is_stream(response):
                await self._stream(response, wish, send)
            else:
                reply = ChatReply(streamed=False)
                begin = reply.feed(await _content(response))
                about, rest = await self._rest(reply, wish)
                await respond(send, 200, end_to_end(response.headers.raw) + about, begin + rest)

    def _passed(self, obstacle: str) -> Headers:
        """Say, in metrics and headers, that an answer was not touched and why."""
        self.metrics.requests.labels("passed", obstacle.partition(":")[0]).inc()
        return [(b"x-pit", b"passed"), (b"x-pit-reason", obstacle[:100].encode("ascii", "replace"))]

    async def _rest(self, reply: ChatReply, wish: Wish) -> tuple[Headers, bytes]:
        """Headers that say what became of a reply that has come to its end, and what is still to be sent of it."""
        if not reply.is_improvable():
            return self._passed(reply.obstacle), reply.rest()
        assert self.improving is not None  # else nothing is improvable
        assert wish.prompt is not None
        with self.metrics.added.time():
            outcome = await self.improving(wish.prompt, reply.text, wish.bounds)
        self.metrics.observe(outcome)
        return outcome.headers(), reply.with_outcome(outcome, original=wish.original)

    async def _stream(self, response: httpx.Response, wish: Wish, send: Send) -> None:
        reply = ChatReply(streamed=True)
        headers = [*end_to_end(response.headers.raw), (b"x-pit", b"in-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        beating = asyncio.ensure_future(self._beat(send))
        try:
            async for event in events(response.aiter_raw()):
                if body := reply.feed(event):
                    await _more(send, body)
                if reply.obstacle:
                    beating.cancel()
            _, rest = await self._rest(reply, wish)
        except httpx.RequestError:
            self._passed("upstream broke off")
            return await _more(send, reply.rest())  # without an end: the client's stream breaks off as this one did
        finally:
            beating.cancel()
        await send({"type": "http.response.body", "body": rest})

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self.heartbeat)
            await _more(send, COMMENT)


async def relay(response: httpx.Response, more: Headers, send: Send) -> None:
    """Send an upstream's response on; a stream as it comes, anything else whole or, with a 502 or 504, not at all."""
    headers = end_to_end(response.headers.raw) + more
    if not _is_stream(response):
        return await respond(send, response.status_code, headers, await _content(response))
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    try:
        async for part in response.aiter_raw():
            await _more(send, part)
    except httpx.RequestError:
        return  # without an end: the client's stream breaks off as this one did
    await send({"type": "http.response.body", "body": b""})


def _is_stream(response: httpx.Response) -> bool:
    return str(response.headers.get("content-type", "")).startswith("text/event-stream")


async def _content(response: httpx.Response) -> bytes:
    return b"".join([part async for part in response.aiter_raw()])


async def _more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
