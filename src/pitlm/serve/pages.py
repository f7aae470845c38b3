"""The pages that pitlm serves: a template each, complete in itself, whose script and style carry a nonce."""

from __future__ import annotations

import secrets
from typing import Any

from jinja2 import Environment, PackageLoader
from starlette.responses import HTMLResponse

from pitlm.serve.guard import HEADERS, content_security_policy

TEMPLATES = Environment(loader=PackageLoader("pitlm.serve", "."), autoescape=True)


def page(name: str, **about: Any) -> HTMLResponse:
    """The page made from the template ``name`` with what it is told, and what a browser may do with it."""
    nonce = secrets.token_urlsafe(16)
    text = TEMPLATES.get_template(name).render(nonce=nonce, **about)
    return HTMLResponse(text, headers={**HEADERS, "Content-Security-Policy": content_security_policy(nonce)})
