"""The pages that pitlm serves: a template each, complete in itself, whose script and style carry a nonce."""

from __future__ import annotations

import secrets
from typing import Any

from jinja2 import Environment, PackageLoader
from starlette.responses import HTMLResponse

TEMPLATES = Environment(loader=PackageLoader("pitlm.serve", "."), autoescape=True)
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What a browser may do with a response of a server for browsers."""


def page(name: str, **about: Any) -> HTMLResponse:
    """The page made from the template ``name`` and the values in ``about``.

    Nothing loads or runs in the page but its own script and style; it asks its own server only.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    text = TEMPLATES.get_template(name).render(nonce=nonce, **about)
    return HTMLResponse(text, headers={**HEADERS, "Content-Security-Policy": policy})
