"""Requests for the tests of every engine."""

from __future__ import annotations

from pitlm.core.nouns import Prompt
from pitlm.engines.engine import WriteRequest

X = [Prompt.of(text) for text in ("what is the price ?", "is it small ?", "price ?")]
REFERENCES = ["silly question .", "it is small .", "read it yourself . silly question ."]


def drain(engine):
    """Return an engine's answers to its pending requests, by key."""
    found = {}
    while engine.pending:
        found.update({one.key: one for one in engine.step()})
    return found


def requests(temperature=0.0):
    return [WriteRequest((n, 0), x, y, temperature, seed=n) for n, (x, y) in enumerate(zip(X, REFERENCES, strict=True))]
