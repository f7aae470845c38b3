"""Errors in the shape that OpenAI's clients expect of a server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class ApiError(Exception):
    """An answer that is an error: its HTTP status, a machine-readable code and a message for people."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: Headers | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or []

    def body(self) -> bytes:
        """The error as JSON."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else self.code
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    async def send(self, send: Send, *, as_text: bool = False) -> None:
        """Answer with this error, as JSON or as a line of text."""
        kind, body = (b"text/plain", f"{self}\n".encode()) if as_text else (b"application/json", self.body())
        await respond(send, self.status, [*self.headers, (b"content-type", kind)], body)


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send one whole response."""
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
