"""HTTP connections to one server, each used again and again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from pitlm.core.errors import InputError

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 4.0  # below the 5 s after which common servers close an idle connection: a request must not meet that


class Connections:
    """Connections to the server at ``base``, a URL without query; as many as there are requests at once.

    Uses httpx's transport, not its client: no cookies kept from one user for the next, no redirects followed, no second
    attempt at what may have been done; and one transport for each connection, because httpx's own pool looks at every
    connection that it has for each request.

    Args:
        seconds: of silence that are waited for; None waits for ever.

    Raises:
        InputError: not an http(s) URL.
    """

    def __init__(self, base: str, seconds: float | None) -> None:
        url = urlsplit(base)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InputError(f"found {base!r}, expected a URL such as https://api.example.com/v1")
        self.host = url.netloc.rpartition("@")[2].encode()
        self.url = lru_cache(256)(lambda path: httpx.URL(base.rstrip("/") + path))
        self._timeout = {"connect": CONNECT_SECONDS, "pool": None, "read": seconds, "write": seconds}
        self._new = partial(
            httpx.AsyncHTTPTransport,
            verify=httpx.create_ssl_context(),
            limits=httpx.Limits(max_connections=1, keepalive_expiry=IDLE_SECONDS),
            proxy=None if proxy_bypass(url.hostname) else getproxies().get(url.scheme),
            retries=1,  # of connecting, nothing else
        )
        self._idle: list[httpx.AsyncHTTPTransport] = []

    @asynccontextmanager
    async def response(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; yields the response, whose body is still to be read.

        Args:
            path: below ``base``, with its query.
            headers: all of them; only Host and Content-Length are added.

        Raises:
            httpx.RequestError: no response.
        """
        headers = [(b"host", self.host), *headers]
        if body or method not in ("GET", "HEAD"):
            headers.append((b"content-length", str(len(body)).encode()))
        extensions = {"timeout": self._timeout}
        request = httpx.Request(method, self.url(path), headers=headers, content=body, extensions=extensions)
        transport = self._idle.pop() if self._idle else self._new()
        try:
            response = await transport.handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            self._idle.append(transport)

    async def close(self) -> None:
        """Let the connections go."""
        for transport in self._idle:
            await transport.aclose()
