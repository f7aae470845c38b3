"""HTTP connections to another server: the upstream, or the server that has the gap model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from pitlm.core.errors import InputError
from pitlm.serve.responses import ApiError, Headers

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 4.0  # below the 5 s after which common servers close an idle connection: a request must not meet that

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
"""Headers that speak of one connection, not of the message (RFC 9110, 7.6.1)."""
NOT_UPSTREAM = HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect", b"x-pit"}
NOT_DOWNSTREAM = HOP_BY_HOP | {b"content-length"}


def end_to_end(headers: Iterable[tuple[bytes, bytes]], leave_out: frozenset[bytes] = NOT_DOWNSTREAM) -> Headers:
    """The headers of a message that go on to the next hop; names in small letters."""
    kept = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in kept if name == b"connection").lower()
    gone = leave_out | {token.strip() for token in named.split(b",")} if named else leave_out
    return [(name, value) for name, value in kept if name not in gone]


class Connections:
    """Connections to the API at ``base``, the URL that its clients have as ``base_url``; one for each request at once.

    Uses httpx's transport, not its client: no cookies kept from one user for the next, no redirects followed, no second
    attempt at what may have been done; and one transport for each connection, because httpx's own pool looks at every
    connection that it has for each request.

    Args:
        key: sent in place of the client's Authorization header; None passes that on.
        seconds: of silence that are waited for; None waits for ever.

    Raises:
        InputError: not an http(s) URL.
    """

    def __init__(self, base: str, *, key: str | None = None, seconds: float | None = None) -> None:
        url = urlsplit(base)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InputError(f"found {base!r}, expected a URL such as https://api.example.com/v1")
        self._own = [(b"host", url.netloc.rpartition("@")[2].encode()), (b"accept-encoding", b"identity")]
        self._leave_out = NOT_UPSTREAM
        if key is not None:
            self._own.append((b"authorization", f"Bearer {key}".encode()))
            self._leave_out |= {b"authorization"}
        self._url = lru_cache(256)(lambda path: httpx.URL(base.rstrip("/") + path))
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
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> AsyncIterator[httpx.Response]:
        """Pass a request on; yields the response, whose body is still to be read.

        Args:
            path: below ``base``, with its query.

        Raises:
            ApiError: 502 or 504, where there was no response, or not to its end; 400 for headers that cannot be sent.
        """
        passed = [*self._own, *end_to_end(headers, self._leave_out)]
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

    async def close(self) -> None:
        """Let the connections go."""
        for transport in self._idle:
            await transport.aclose()
