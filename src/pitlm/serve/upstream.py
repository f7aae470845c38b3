"""The upstream, which gets requests as the client made them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx

from pitlm.serve.connections import Connections
from pitlm.serve.error_replies import ApiError, Headers

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
"""Headers that speak of one connection, not of the message (RFC 9110, 7.6.1)."""
NOT_UPSTREAM = HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect", b"x-pit"}
NOT_DOWNSTREAM = HOP_BY_HOP | {b"content-length"}


def end_to_end(headers: Iterable[tuple[bytes, bytes]], leave_out: frozenset[bytes]) -> Headers:
    """The headers of a message that go on to the next hop; names in small letters."""
    kept = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in kept if name == b"connection").lower()
    gone = leave_out | {token.strip() for token in named.split(b",")} if named else leave_out
    return [(name, value) for name, value in kept if name not in gone]


class Upstream:
    """An OpenAI-compatible API at ``base``, the URL that its clients have as ``base_url``.

    Args:
        key: sent in place of the client's Authorization header; None passes that on.
        seconds: of silence that are waited for.

    Raises:
        InputError: not an http(s) URL.
    """

    def __init__(self, base: str, *, key: str | None = None, seconds: float = 600.0) -> None:
        self._connections = Connections(base, seconds)
        self._key = None if key is None else (b"authorization", f"Bearer {key}".encode())
        self.close = self._connections.close

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
        passed = [*end_to_end(headers, NOT_UPSTREAM), (b"accept-encoding", b"identity")]
        if self._key is not None:
            passed = [*(pair for pair in passed if pair[0] != b"authorization"), self._key]
        try:
            async with self._connections.response(method, path, passed, body) as response:
                yield response
        except httpx.RequestError as error:
            raise upstream_failure(error) from error


def upstream_failure(error: httpx.RequestError) -> ApiError:
    """What a client is told of an upstream that did not answer, or not to the end."""
    if isinstance(error, httpx.LocalProtocolError):
        return ApiError(400, "invalid_request", "The request has a header that cannot be sent on.")
    if isinstance(error, httpx.TimeoutException):
        return ApiError(504, "upstream_timeout", f"The upstream did not answer in time ({type(error).__name__}).")
    return ApiError(
        502, "upstream_unreachable", f"The upstream cannot be reached or broke off ({type(error).__name__})."
    )
