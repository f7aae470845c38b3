"""What a request has to pass before it is worked on: token, size, and its turn."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers

from pitlm.serve.error_replies import ApiError, Receive, Scope, Send
from pitlm.serve.guard import by_other_name, from_other_site
from pitlm.serve.metrics import Metrics
from pitlm.serve.settings import Settings

log = logging.getLogger("pitlm.serve")

UNLIMITED = frozenset({"/healthz", "/metrics"})
BODY_SECONDS = 60.0


class ServerLimits:
    """ASGI middleware: bearer token, body size, concurrency, and an end to work that nobody waits for.

    The body is read whole before a request takes its turn, so that a slow client holds up nobody.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, settings: Settings, metrics: Metrics
    ) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.token = None if settings.token is None else f"Bearer {settings.token}".encode()
        self.turns = asyncio.Semaphore(settings.concurrency)
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()
        reply = _Watched(send)
        try:
            self._admit(scope)
            if scope["path"] in UNLIMITED:
                await self.app(scope, receive, reply)
            else:
                with self._place():
                    await self._in_turn(scope, await self._body(scope, receive), receive, reply)
        except ApiError as error:
            if reply.status is None:
                await error.send(reply)
        except Exception:
            if reply.status is None:
                await ApiError(500, "internal_error", "The proxy failed; its log says more.").send(reply)
            log.exception("%s %s", scope["method"], scope["path"])
        self.metrics.responses.labels(str(reply.status or "gone")).inc()
        # Neither query, headers nor bodies: keys and conversations stay out of the log.
        log.info("%s %s %s %.0f ms", scope["method"], scope["path"], reply.status, 1e3 * (time.perf_counter() - began))

    def _admit(self, scope: Scope) -> None:
        headers, hosts = Headers(scope=scope), self.settings.hosts
        if from_other_site(headers) or (hosts is not None and by_other_name(headers, hosts)):
            raise ApiError(403, "foreign_site", "This request comes from another site's page, or by a foreign name.")
        if self.token is None or scope["path"] in self.settings.open_paths:
            return
        if not hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), self.token):
            raise ApiError(
                401, "invalid_api_key", "A bearer token is needed.", headers=[(b"www-authenticate", b"Bearer")]
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        parts, size = [], int(announced)
        read, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more and max(size, read) <= self.settings.body_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "gone", "The client went away.")
                    parts.append(message.get("body", b""))
                    read += len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise ApiError(408, "request_timeout", "The request's body did not arrive in time.") from error
        if max(size, read) > self.settings.body_bytes:
            # What is still to come is not read, so the connection is of no more use.
            raise ApiError(
                413,
                "request_too_large",
                f"The request is larger than the {self.settings.body_bytes} bytes that are taken.",
                headers=[(b"connection", b"close")],
            )
        return b"".join(parts)

    async def _in_turn(self, scope: Scope, body: bytes, receive: Receive, reply: _Watched) -> None:
        """Work on a request when it is its turn, and stop when its client goes away."""
        task = asyncio.current_task()
        assert task is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            await receive()  # the body has been read: only the end of the connection can come
            if not reply.finished:
                gone = True
                task.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            async with self.turns:
                scope["pit.body"] = body
                await self.app(scope, _replay(body), reply)
        except asyncio.CancelledError:
            if not gone or task.uncancel() > 0:
                raise
        finally:
            watcher.cancel()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of the places of those that are worked on, waiting, or still sending their request."""
        if self.inside >= self.settings.concurrency + self.settings.queue:
            raise ApiError(429, "too_many_requests", "The proxy is full.", headers=[(b"retry-after", b"1")])
        self.inside += 1
        self.metrics.inside.inc()
        try:
            yield
        finally:
            self.inside -= 1
            self.metrics.inside.dec()


class _Watched:
    """A ``send`` that remembers how far the response has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.finished = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.finished = not message.get("more_body", False)
        await self._send(message)


def _replay(body: bytes) -> Receive:
    gone: MutableMapping[str, Any] = {"type": "http.disconnect"}
    messages = [gone, {"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop() if len(messages) > 1 else messages[0]

    return receive
