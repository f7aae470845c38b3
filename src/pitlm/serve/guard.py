"""What stands before every page that pitlm serves: who may ask, from where, how much, and what a browser may do."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Container
from http.cookies import SimpleCookie
from urllib.parse import parse_qs

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pitlm.core.errors import InputError
from pitlm.serve.settings import LOOPBACK, LOOPBACK_HOSTS

COOKIE = "pit_token"
MAX_BODY = 64 * 1024
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PORT = re.compile(r":\d+\Z")


def make_token(host: str) -> str | None:
    """The secret that a server bound to ``host`` asks for: none where only this machine can reach it."""
    return None if host in LOOPBACK_HOSTS else secrets.token_urlsafe(24)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. What comes before the server runs waits, and is not refused.

    Raises:
        InputError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
        # Inherited by each connection; asyncio sets it itself only where the protocol is named. Without it the last
        # part of a reply waits for the client's delayed acknowledgement, 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # the library repeats the address in brackets
        raise InputError(f"--host {host} --port {port}: cannot listen there ({why})") from error


def address(listener: socket.socket, token: str | None) -> str:
    """The URL to give to people, with the token."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={token}" if token else "")


def content_security_policy(nonce: str) -> str:
    """Nothing loads or runs but the page's own script and style, which carry the nonce; it asks its own server only."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


def from_other_site(headers: Headers) -> bool:
    """Whether the page of another site sent this, as any that the user has open in a browser can."""
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def by_other_name(headers: Headers, hosts: Container[str]) -> bool:
    """Whether this came by another name than ``hosts``: a foreign site's, made to resolve to here (DNS rebinding)."""
    return _PORT.sub("", headers.get("host", "")) not in hosts


def guard(app: FastAPI, token: str | None) -> None:
    """Put the guard before ``app``. Without a token, only requests to a loopback name pass."""
    app.add_middleware(Guard, token=token)


class Guard:
    """Refuses requests without the token, from another site's pages, or with long bodies; adds the headers.

    The token comes once, in the page's address, and then as a cookie that no script reads and no other site sends.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the server; no page here uses web sockets
            await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
            return
        headers = Headers(scope=scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    sent[name] = value
                if self.token is not None and self._right(given):
                    sent.append("Set-Cookie", f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        refusal = self._refusal(scope["method"], headers, given)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers, given: str) -> PlainTextResponse | None:
        if self.token is None and by_other_name(headers, LOOPBACK):
            return PlainTextResponse("This request comes by a foreign name.\n", 400)
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        if self.token is not None and not self._right(given) and not (cookie and self._right(cookie.value)):
            return PlainTextResponse("Open the whole address that was printed, with ?token= and what follows.\n", 403)
        if method in ("GET", "HEAD"):
            return None
        if from_other_site(headers):
            return PlainTextResponse("This request comes from another site's page.\n", 403)
        length = headers.get("content-length", "")
        if not length.isdecimal():  # the server holds a client to the length that it names
            return PlainTextResponse("The length of the body is missing.\n", 411)
        if int(length) > MAX_BODY:
            return PlainTextResponse(f"The body is longer than {MAX_BODY} bytes.\n", 413)
        return None

    def _right(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())
