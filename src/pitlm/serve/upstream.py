"""The upstream: one pool of connections to it, and requests that reach it as the client made them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from pitlm.core.errors import InputError
from pitlm.serve.errors import ApiError, Headers

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
"""Headers that speak of one connection, not of the message (RFC 9110, 7.6.1)."""
NOT_UPSTREAM = HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect", b"x-pit"}
NOT_DOWNSTREAM = HOP_BY_HOP | {b"content-length"}
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 4.0  # below the 5 s after which common servers close an idle connection: a request must not meet that


def end_to_end(headers: Iterable[tuple[bytes, bytes]], leave_out: frozenset[bytes]) -> Headers:
    """The headers of a message that go on to the next hop; names in small letters."""
    kept = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in kept if name == b"connection").lower()
    gone = leave_out | {token.strip() for token in named.split(b",")} if named else leave_out
    return [(name, value) for name, value in kept if name not in gone]


class Upstream:
    """An OpenAI-compatible API at ``base``, the URL that its clients have as ``base_url``.

    Sends through httpx's transport, not its client: no cookies kept between users, no redirects followed, no retries
    of what may have been carried out, and a third less time for each request.

    Args:
        key: sent in place of the client's Authorization header; None passes that on.
        seconds: of silence that are waited for.

    Raises:
        InputError: not an http(s) URL.
    """

    def __init__(self, base: str, *, key: str | None = None, seconds: float = 600.0) -> None:
        url = urlsplit(base)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InputError(f"--upstream: found {base!r}, expected a URL such as https://api.example.com/v1")
        proxy = None if proxy_bypass(url.hostname) else getproxies().get(url.scheme)
        self.base = base.rstrip("/")
        self._key = None if key is None else (b"authorization", f"Bearer {key}".encode())
        self._host = (b"host", url.netloc.rpartition("@")[2].encode())
        self._url = lru_cache(256)(lambda path: httpx.URL(self.base + path))
        self._timeout = {"connect": CONNECT_SECONDS, "pool": None, "read": seconds, "write": seconds}
        # One transport for each connection: httpx's own pool looks at every connection it has for each request.
        self._new = partial(
            httpx.AsyncHTTPTransport,
            verify=httpx.create_ssl_context(),
            limits=httpx.Limits(max_connections=1, keepalive_expiry=IDLE_SECONDS),
            proxy=proxy,
            retries=1,  # of connecting, nothing else
        )
        self._idle: list[httpx.AsyncHTTPTransport] = []

    @asynccontextmanager
    async def response(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; yields the response, whose body is still to be read.

        Args:
            path: below ``base``, with its query.

        Raises:
            ApiError: 502 or 504, where there was no response; 400 for headers that cannot be sent.
        """
        passed = [self._host, *end_to_end(headers, NOT_UPSTREAM), (b"accept-encoding", b"identity")]
        if self._key is not None:
            passed = [*(pair for pair in passed if pair[0] != b"authorization"), self._key]
        if body or method not in ("GET", "HEAD"):
            passed.append((b"content-length", str(len(body)).encode()))
        extensions = {"timeout": self._timeout}
        request = httpx.Request(method, self._url(path), headers=passed, content=body, extensions=extensions)
        transport = self._idle.pop() if self._idle else self._new()
        try:
            response = await transport.handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            raise upstream_failure(error) from error
        finally:
            self._idle.append(transport)

    async def close(self) -> None:
        """Let the connections go."""
        for transport in self._idle:
            await transport.aclose()


def upstream_failure(error: httpx.RequestError) -> ApiError:
    """What a client is told of an upstream that did not answer, or not to the end."""
    if isinstance(error, httpx.LocalProtocolError):
        return ApiError(400, "invalid_request", "The request has a header that cannot be sent on.")
    if isinstance(error, httpx.TimeoutException):
        return ApiError(504, "upstream_timeout", f"The upstream did not answer in time ({type(error).__name__}).")
    return ApiError(
        502, "upstream_unreachable", f"The upstream cannot be reached or broke off ({type(error).__name__})."
    )
