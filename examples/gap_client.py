"""Asks a running `pit serve --gap` how much better one answer is than another.

    pit serve --gap runs/mine/gap/model --port 8003

Environment: PIT_URL (default http://127.0.0.1:8003/v1) is the address of `pit serve`. PIT_SERVE_TOKEN is its token, if
it has one. The examples for DSPy and mellea import this module. Needs httpx.
"""

from __future__ import annotations

import math
import os
from typing import Any

import httpx

Question = str | list[dict[str, Any]]
"""A text or chat messages."""


def gap(question: Question, reference: str, answer: str) -> float:
    """How much better ``answer`` is than ``reference``, in log-odds; 0 is no change.

    Raises:
        httpx.HTTPError: the server cannot be reached, or refuses the texts.
    """
    found = _ask("POST", {"prompt": question, "reference": reference, "response": answer})["gap"]
    return math.nan if found is None else float(found)


def margin() -> float:
    """The gap that an answer has to exceed: the margin that `pit calibrate` chose, else 0. Infinite: accept nothing.

    Raises:
        httpx.HTTPError: the server cannot be reached.
    """
    found = _ask("GET")["margin"]
    return math.inf if found is None else float(found)


def _ask(method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    token = os.environ.get("PIT_SERVE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = os.environ.get("PIT_URL", "http://127.0.0.1:8003/v1").rstrip("/") + "/score"
    reply = httpx.request(method, url, json=body, headers=headers, timeout=60)
    reply.raise_for_status()
    told: dict[str, Any] = reply.json()
    return told
