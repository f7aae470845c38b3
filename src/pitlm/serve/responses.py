"""Responses that are no model's text: errors in the shape that OpenAI's clients expect, and pages for browsers."""

import json
import secrets
from typing import Any

from jinja2 import Environment, PackageLoader
from starlette.responses import HTMLResponse
from starlette.types import Send

Headers = list[tuple[bytes, bytes]]

TEMPLATES = Environment(loader=PackageLoader("pitlm.serve", "."), autoescape=True)
PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What a browser may do with a response of a server for browsers."""


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

    Nothing loads or runs in the page but its own script and style, which carry a nonce; it asks its own server only.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    text = TEMPLATES.get_template(name).render(nonce=nonce, **about)
    return HTMLResponse(text, headers={**PAGE_HEADERS, "Content-Security-Policy": policy})
