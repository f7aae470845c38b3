"""Parts that the servers of pitlm share: sockets and their addresses, errors in OpenAI's format, and pages."""

import ipaddress
import json
import secrets
import socket
from importlib.resources import files
from typing import Any

import uvicorn
import yaml
from jinja2 import Environment, PackageLoader
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from pitlm.core.errors import InputError
from pitlm.serve.settings import LOOPBACK_HOSTS

Headers = list[tuple[bytes, bytes]]

PATIENCE = 75.0
"""Seconds for the head of a connection's first request; a later head has up to twice as long."""

TEMPLATES = Environment(loader=PackageLoader("pitlm.serve", "."), autoescape=True)
HTTP = yaml.safe_load(files("pitlm.serve").joinpath("http.yaml").read_text("utf-8"))
"""Names of headers, and of fields of the chat API."""
PAGE_HEADERS: dict[str, str] = HTTP["page_headers"]
"""Headers of every response to a browser. They limit what the browser does with the response."""


class ApiError(Exception):
    """A response that is an error: its HTTP status, a machine-readable code and a message for people."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: Headers | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers or []

    async def send(self, send: Send, *, as_text: bool = False) -> None:
        """Respond with this error, as JSON or as a line of text."""
        type_of_error = "invalid_request_error" if self.status < 500 and self.status != 429 else self.code
        error = {"message": str(self), "type": type_of_error, "param": self.param, "code": self.code}
        media, body = ("text/plain", f"{self}\n") if as_text else ("application/json", json.dumps({"error": error}))
        await respond(send, self.status, [*self.headers, (b"content-type", media.encode())], body.encode())


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send one whole response."""
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def page(name: str, **about: Any) -> HTMLResponse:
    """The page made from the template ``name`` and the values in ``about``.

    The browser loads only the page's own script and style, which carry a nonce. The page calls only its own server.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    text = TEMPLATES.get_template(name).render(nonce=nonce, **about)
    return HTMLResponse(text, headers={**PAGE_HEADERS, "Content-Security-Policy": policy})


def make_token(host: str) -> str | None:
    """The secret that a server bound to ``host`` asks for; None if only this machine can reach the server."""
    return None if host in LOOPBACK_HOSTS else secrets.token_urlsafe(24)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free port. A client that connects before the server runs waits.

    Raises:
        InputError: the address is in use, or belongs to another machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
        # Each connection inherits this option. (asyncio sets the option only on sockets that name their protocol.)
        # Without it the last part of a reply waits 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # the library repeats the address in brackets
        raise InputError(f"--host {host} --port {port}: cannot listen there ({why})") from error


def address(listener: socket.socket, token: str | None = None) -> str:
    """The URL to give to people, with the token."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={token}" if token else "")


class _Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # one of two classes, as installed
    """Closes a connection that waits too long for the head of a request, which uvicorn never does."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(PATIENCE, self._check, None)

    def _check(self, before: Any) -> None:
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(PATIENCE, self._check, self.cycle)


def make_server(app: ASGIApp, **more: Any) -> uvicorn.Server:
    """A uvicorn server for an application. It has no access log, because addresses may hold a token."""
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Server(uvicorn.Config(app, http=_Impatient, **quiet, **more))
