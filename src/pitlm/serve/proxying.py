"""The upstream: connections to it, and the endpoints in front of it.

Answers of chat completions are improved, the rest is passed through. The endpoints are plain ASGI applications: no
layer of a framework stands between the upstream's bytes and the client's.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import lru_cache, partial
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from starlette.types import Receive, Scope, Send

from pitlm.core.errors import loading
from pitlm.engines.endpoint import check_url
from pitlm.io.event_stream import events
from pitlm.loop.live_loop import Improving
from pitlm.serve.chat_completions import REASONS, ChatReply, Wish, read_wish
from pitlm.serve.outcomes import Metrics, header_text, pit_headers
from pitlm.serve.web import HTTP, ApiError, Headers, respond

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 4.0  # common servers close an idle connection after 5 s; no request may start while they do

HOP_BY_HOP = frozenset(name.encode() for name in HTTP["hop_by_hop"])
"""Headers that speak of one connection, not of the message (RFC 9110, 7.6.1)."""
NOT_UPSTREAM = HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect", b"x-pit"}
NOT_DOWNSTREAM = HOP_BY_HOP | {b"content-length"}


COMMENT = b": pit\n"
"""A line that clients skip. The proxy sends it to keep a connection open while no text goes out. A blank line after it
would end an event, which OpenAI's client takes for an empty answer once it has seen an event with an id."""


LONGEST_PATH = 8_000
_LEADS_OUT = re.compile(r"[/\\]\.\.?(?:[/\\]|$)")


def end_to_end(headers: Headers, leave_out: frozenset[bytes] = NOT_DOWNSTREAM) -> Headers:
    """The headers of a message that go on to the next hop, with names in lower case."""
    kept = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in kept if name == b"connection").lower()
    gone = leave_out | {token.strip() for token in named.split(b",")} if named else leave_out
    return [(name, value) for name, value in kept if name not in gone]


class Connections:
    """Connections to the API at ``base``, which OpenAI's clients call ``base_url``: one for each request in flight.

    The connections use httpx's transport, not its client. So no user gets a cookie of another user, no redirect is
    followed, and no request is sent twice. Each connection is a transport of its own, because httpx's pool looks at all
    its connections for each request.

    Args:
        key: replaces the client's Authorization header; None passes the client's header on.
        seconds: how long the server may be silent; None sets no limit.
        name: the option that gave ``base``, for the error.

    Raises:
        InputError: not an http(s) URL.
    """

    def __init__(
        self, base: str, *, key: str | None = None, seconds: float | None = None, name: str = "--upstream"
    ) -> None:
        check_url(base, name)
        url = urlsplit(base)
        self._own = [(b"host", url.netloc.rpartition("@")[2].encode()), (b"accept-encoding", b"identity")]
        self._leave_out = NOT_UPSTREAM
        if key is not None:
            self._own.append((b"authorization", f"Bearer {key}".encode()))
            self._leave_out |= {b"authorization"}
        self._url = lru_cache(256)(lambda path: httpx.URL(base.rstrip("/") + path))
        self._extensions = {"timeout": {"connect": CONNECT_SECONDS, "pool": None, "read": seconds, "write": seconds}}
        proxy = None if proxy_bypass(str(url.hostname)) else getproxies().get(url.scheme)
        verify, limits = httpx.create_ssl_context(), httpx.Limits(max_connections=1, keepalive_expiry=IDLE_SECONDS)
        # Only connecting is tried again, never a request.
        self._new = partial(httpx.AsyncHTTPTransport, verify=verify, limits=limits, proxy=proxy, retries=1)
        with loading(base, "connection"):  # the environment may name a proxy of an unknown kind
            self._idle = [self._new()]

    @asynccontextmanager
    async def response(self, method: str, path: str, headers: Headers, body: bytes) -> AsyncIterator[httpx.Response]:
        """Pass a request on. Yield the response; the caller reads its body.

        Args:
            path: below ``base``, with its query.

        Raises:
            ApiError: 502 or 504, no response came, or it broke off; 400, a header cannot be sent.
        """
        passed = [*self._own, *end_to_end(headers, self._leave_out)]
        if body or method not in ("GET", "HEAD"):
            passed.append((b"content-length", str(len(body)).encode()))
        request = httpx.Request(method, self._url(path), headers=passed, content=body, extensions=self._extensions)
        transport = self._idle.pop() if self._idle else self._new()
        try:
            async with aclosing(await transport.handle_async_request(request)) as response:
                yield response
        except httpx.LocalProtocolError as error:
            raise ApiError(400, "invalid_request", "The request has a header that cannot be sent on.") from error
        except httpx.TimeoutException as error:
            message = f"The upstream did not answer in time ({type(error).__name__})."
            raise ApiError(504, "upstream_timeout", message) from error
        except httpx.RequestError as error:
            message = f"The upstream cannot be reached or broke off ({type(error).__name__})."
            raise ApiError(502, "upstream_unreachable", message) from error
        finally:
            self._idle.append(transport)

    async def aclose(self) -> None:
        """Let the connections go."""
        for transport in self._idle:
            await transport.aclose()


class PassThrough:
    """Sends every request to the upstream and its response back, byte for byte."""

    def __init__(self, upstream: Connections) -> None:
        self.upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._response(scope, scope["pit.body"]) as response:
            await relay(response, [], send)

    def _response(self, scope: Scope, body: bytes) -> AbstractAsyncContextManager[httpx.Response]:
        path = (scope.get("raw_path") or scope["path"].encode()).decode("ascii")
        # With its own slash the path cannot change the host or the port of the base, whatever the rest decodes to.
        if not path.startswith("/v1/") or _LEADS_OUT.search(scope["path"]) or len(path) > LONGEST_PATH:
            raise ApiError(404, "not_found", "No such path.")
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        return self.upstream.response(scope["method"], path[3:] + query.decode("ascii"), scope["headers"], body)


class ChatCompletions(PassThrough):
    """``/v1/chat/completions``: the upstream's answer is y_0, and the client gets the answer of the loop."""

    def __init__(self, upstream: Connections, improving: Improving | None, metrics: Metrics, heartbeat: float) -> None:
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
        """Count an answer that goes out unchanged, and return headers that give the reason."""
        reason = obstacle.partition(":")[0]
        self.metrics.requests.labels("passed", reason if reason in REASONS else "another field").inc()
        return [(b"x-pit", b"passed"), (b"x-pit-reason", header_text(obstacle[:100]))]

    async def _rest(self, reply: ChatReply, wish: Wish) -> tuple[Headers, bytes]:
        """The outcome of a finished reply as headers, and the bytes of the reply that are still to be sent."""
        if not reply.is_improvable():
            return self._passed(reply.obstacle), reply.rest()
        assert self.improving is not None  # else nothing is improvable
        assert wish.prompt is not None
        with self.metrics.added.time():
            outcome = await self.improving(wish.prompt, reply.text, wish.bounds)
        self.metrics.observe(outcome)
        return pit_headers(outcome), reply.with_outcome(outcome, original=wish.original)

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
            return await _more(send, reply.rest())  # no last message: the client's stream breaks off too
        finally:
            beating.cancel()
        await send({"type": "http.response.body", "body": rest})

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self.heartbeat)
            await _more(send, COMMENT)


async def relay(response: httpx.Response, more: Headers, send: Send) -> None:
    """Pass the upstream's response on to the client: a stream part by part, any other response whole.

    Raises:
        httpx.RequestError: a response that is no stream broke off; the client has not got any of it.
    """
    headers = end_to_end(response.headers.raw) + more
    if not _is_stream(response):
        return await respond(send, response.status_code, headers, await _content(response))
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    try:
        async for part in response.aiter_raw():
            await _more(send, part)
    except httpx.RequestError:
        return  # no last message: the client's stream breaks off too
    await send({"type": "http.response.body", "body": b""})


def _is_stream(response: httpx.Response) -> bool:
    return str(response.headers.get("content-type", "")).startswith("text/event-stream")


async def _content(response: httpx.Response) -> bytes:
    return b"".join([part async for part in response.aiter_raw()])


async def _more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
