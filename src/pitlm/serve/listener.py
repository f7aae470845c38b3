"""The socket that a server listens on, the address that people open, and the HTTP server behind them."""

import ipaddress
import secrets
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pitlm.core.errors import InputError
from pitlm.serve.settings import LOOPBACK_HOSTS


def make_token(host: str) -> str | None:
    """The secret that a server bound to ``host`` asks for; None where only this machine can reach the server."""
    return None if host in LOOPBACK_HOSTS else secrets.token_urlsafe(24)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free port. Clients that come before the server runs wait.

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


def address(listener: socket.socket, token: str | None = None) -> str:
    """The URL to give to people, with the token."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={token}" if token else "")


def make_server(app: ASGIApp, **more: Any) -> uvicorn.Server:
    """uvicorn around an application, without an access log, which would hold secrets of addresses."""
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Server(uvicorn.Config(app, **quiet, **more))
