"""The gate of every server of pitlm: checks names, sites and tokens, and limits the size and the number of requests."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pitlm.serve.outcomes import Metrics
from pitlm.serve.settings import Settings
from pitlm.serve.web import PAGE_HEADERS, ApiError

log = logging.getLogger("pitlm.serve")

COOKIE = "pit_token"
UNCOUNTED = frozenset({"/healthz", "/metrics"})
"""Paths that are answered at once, however full the server is."""
BODY_SECONDS = 60.0
_PORT = re.compile(r":\d+\Z")


class Gate:
    """ASGI middleware: refuses requests, limits them, and ends work that nobody waits for.

    The gate refuses a request that names a foreign host (DNS rebinding), that another site's page sends, or that lacks
    the token. The body is read whole before a request takes its turn, so that a slow client holds up nobody.

    Args:
        settings: the token, the names, the paths without token, the largest body, and how many requests at once.
        pages: the server's clients are browsers. The first request has the token in its address. Later requests have
            the token in a cookie, which no script reads and no other site sends. Every response has ``PAGE_HEADERS``,
            and errors are text. Without ``pages`` the token is a bearer token, and errors are JSON.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, *, pages: bool = False) -> None:
        self.app, self.settings, self.metrics, self.pages = app, settings, metrics, pages
        self.largest = int(settings.max_body * 2**20)  # bytes of a body
        self.turns = asyncio.Semaphore(settings.concurrency)
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no server of pitlm uses websockets
            return await send({"type": "websocket.close"})
        if scope["type"] != "http":  # the server starts or ends
            return await self.app(scope, receive, send)
        began = time.perf_counter()
        reply = _Reply(send, self._headers(scope))
        try:
            self._admit(scope)
            if scope["path"] in UNCOUNTED:
                await self.app(scope, receive, reply)
            else:
                await self._counted(scope, receive, reply)
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("%s %s", scope["method"], ascii(scope["path"])[1:-1][:200])
                error = ApiError(500, "internal_error", "The server failed; its log says more.")
            if reply.status is None:
                await error.send(reply, as_text=self.pages)
        self.metrics.responses.labels(str(reply.status or "gone")).inc()
        # The log has no query, header or body, which hold keys and conversations. No path can begin a line of it.
        spent = 1e3 * (time.perf_counter() - began)
        log.info("%s %s %s %.0f ms", scope["method"], ascii(scope["path"])[1:-1][:200], reply.status, spent)

    def _headers(self, scope: Scope) -> dict[str, str]:
        """Headers that every response gets."""
        if not self.pages:
            return {}
        token = self.settings.token
        if token is None or not _same(_token_in_address(HTTPConnection(scope)), token):
            return PAGE_HEADERS
        return PAGE_HEADERS | {"Set-Cookie": f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"}

    def _admit(self, scope: Scope) -> None:
        """Check where a request comes from, and its token.

        Raises:
            ApiError: 403 for a foreign name or site; 403 (pages) or 401 without the token.
        """
        request, hosts, token = HTTPConnection(scope), self.settings.hosts, self.settings.token
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        foreign = hosts is not None and _PORT.sub("", host) not in hosts
        # A page's plain GET has no origin. A link that a person follows to our own page comes from another site, too.
        followed = self.pages and request.headers.get("sec-fetch-mode") == "navigate"
        foreign |= request.headers.get("sec-fetch-site") in ("cross-site", "same-site") and not followed
        if foreign or (origin is not None and origin.partition("://")[2] != host):
            raise ApiError(403, "foreign_site", "This request comes from another site's page, or by a foreign name.")
        if token is None or scope["path"] in self.settings.open_paths:
            return
        if self.pages:
            given = (_token_in_address(request), request.cookies.get(COOKIE, "").encode())
            if not any(_same(one, token) for one in given):
                words = "Open the whole address that was printed, with ?token= and what follows."
                raise ApiError(403, "token_missing", words)
        elif not _same(request.headers.get("authorization", "").encode("latin-1"), f"Bearer {token}"):
            bearer = [(b"www-authenticate", b"Bearer")]
            raise ApiError(401, "invalid_api_key", "A bearer token is needed.", headers=bearer)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the whole body.

        Raises:
            ApiError: 400, 408 or 413, a body that is broken off, slow or too large.
        """
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal():
            raise ApiError(400, "invalid_request", "The length of the body is no number.")
        body, size, more = bytearray(), int(announced), True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more and size <= self.largest:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "gone", "The client went away.")
                    body += message.get("body", b"")
                    size = max(size, len(body))
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise ApiError(408, "request_timeout", "The request's body did not arrive in time.") from error
        if size > self.largest:
            # The rest of the body is not read, so no other request can follow on this connection.
            words = f"The request is larger than the {self.largest} bytes that are taken."
            raise ApiError(413, "request_too_large", words, headers=[(b"connection", b"close")])
        return bytes(body)

    async def _counted(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        """Work on a request, and count it from the arrival of its body to the end of the work.

        Raises:
            ApiError: 429, the server is full.
        """
        if self.inside >= self.settings.concurrency + self.settings.queue:
            raise ApiError(429, "too_many_requests", "The server is full.", headers=[(b"retry-after", b"1")])
        self.inside += 1
        try:
            with self.metrics.inside.track_inprogress():
                scope["pit.body"] = await self._body(scope, receive)
                await self._in_turn(scope, receive, reply)
        finally:
            self.inside -= 1

    async def _in_turn(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        """Work on a request when it is its turn, and stop when its client goes away."""

        async def watch() -> None:
            await receive()  # the body has been read: only the end of the connection can come
            if not reply.finished:
                work.reschedule(0.0)  # the client is gone: end the work now

        work, watcher = asyncio.timeout(None), asyncio.ensure_future(watch())
        try:
            async with work, self.turns:
                await self.app(scope, _replay(scope["pit.body"]), reply)
        except TimeoutError:
            if not work.expired():
                raise
        finally:
            watcher.cancel()


class _Reply:
    """A ``send`` that adds headers, and remembers how far the response has come."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send, self._headers = send, headers
        self.status: int | None = None
        self.finished = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._headers:
                MutableHeaders(scope=message).update(self._headers)
        else:
            self.finished = not message.get("more_body", False)
        await self._send(message)


def _same(given: bytes, secret: str) -> bool:
    """Compare in constant time, so that the time of a refusal tells nothing about the secret."""
    return hmac.compare_digest(given, secret.encode())


def _token_in_address(request: HTTPConnection) -> bytes:
    return request.query_params.get("token", "").encode()


def _replay(body: bytes) -> Receive:
    """A ``receive`` that first returns the given body, and then the end of the connection."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
