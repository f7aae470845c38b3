"""An optillm technique: the model answers, and `pit serve` improves the answer.

    pit serve --run runs/quickstart --port 8000
    cp optillm_plugin.py .../optillm/plugins/pit_plugin.py   # optillm loads every *_plugin.py of that folder

Then ask optillm for the model `pit-NAME`, or send {"optillm_approach": "pit"}. Do not chain this technique: a chain
passes an answer on as if it were the question.

Environment: PIT_URL (default http://127.0.0.1:8000/v1) is the address of `pit serve`. PIT_SERVE_TOKEN is its token,
if it has one. PIT_SECONDS (default 25, a little above its --improve-timeout) is the longest wait for its reply. After
that, and whenever improving fails, the technique returns the model's own answer. Errors of the model pass through.

optillm passes a conversation as one text with `User:` and `Assistant:` before the turns. If the turns alternate, the
technique splits the text into turns. Otherwise it sends the text unchanged to the model and does not improve the
answer.

Tested against the interface in optillm's sources and README (SLUG, run), not with the package. Needs only the standard
library.
"""

from __future__ import annotations

import json
import logging
import os
import re
import urllib.request
from typing import Any

log = logging.getLogger("pit.optillm")

SLUG = "pit"
LIMITS = ("max_tokens", "max_completion_tokens")
PASSED = (*LIMITS, "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "response_format")
ROLES = {"User": "user", "Assistant": "assistant"}


def run(
    system_prompt: str, initial_query: str, client: Any, model: str, request_config: dict[str, Any] | None = None
) -> tuple[str, int]:
    """Return the final answer, and the number of tokens that model and improver wrote."""
    given = {name: value for name, value in (request_config or {}).items() if name in PASSED and value is not None}
    turns = _turns(initial_query)
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages += turns or [{"role": "user", "content": initial_query}]
    reply = client.chat.completions.create(model=model, messages=messages, **given)
    choice, usage = reply.choices[0], getattr(reply, "usage", None)
    text, tokens = choice.message.content or "", getattr(usage, "completion_tokens", 0) or 0
    formatted = given.get("response_format") not in (None, {"type": "text"})
    if not turns or not text.strip() or formatted or choice.finish_reason not in ("stop", "length"):
        return text, tokens
    trace = _improve({"prompt": messages, "response": text, **_bounds(given)})
    return trace.get("final") or text, tokens + trace.get("generated_tokens", 0)


def _turns(query: str) -> list[dict[str, str]]:
    """Split optillm's text into turns; empty if the turns do not alternate."""
    parts = re.split(r"(?:\A|\n)(User|Assistant): ", query)
    if len(parts) == 1:
        return [{"role": "user", "content": query}]
    before, names, texts = parts[0], parts[1::2], parts[2::2]
    alternate = all(name == ("User", "Assistant")[index % 2] for index, name in enumerate(names))
    if before or not alternate or names[-1] != "User":
        return []
    return [{"role": ROLES[name], "content": text} for name, text in zip(names, texts, strict=True)]


def _bounds(given: dict[str, Any]) -> dict[str, Any]:
    """Return the limits of the request, which an improved answer has to keep too."""
    bounds = {name: given[name] for name in ("temperature", "seed") if name in given}
    limits = [given[name] for name in LIMITS if name in given]
    if limits:
        bounds["max_tokens"] = min(limits)
    if stop := given.get("stop"):
        bounds["stop"] = [stop] if isinstance(stop, str) else stop
    return bounds


def _improve(body: dict[str, Any]) -> dict[str, Any]:
    """Return the trace of the loop; empty if improving failed."""
    url = os.environ.get("PIT_URL", "http://127.0.0.1:8000/v1").rstrip("/") + "/improve"
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("PIT_SERVE_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=float(os.environ.get("PIT_SECONDS", "25"))) as reply:
            trace = json.load(reply)
        return trace if isinstance(trace["final"], str) else {}
    except (OSError, ValueError, LookupError, TypeError) as error:  # urllib's own errors are OSErrors
        log.warning("not improved: %s", type(error).__name__)  # the log gets neither address nor conversation
        return {}
