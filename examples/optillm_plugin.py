"""An optillm technique: the model answers, and `pit serve` improves the answer.

    pit serve --run runs/mine --port 8000
    cp optillm_plugin.py .../optillm/plugins/pit_plugin.py   # optillm loads every *_plugin.py of that folder

Then ask optillm for the model `pit-NAME`, or send {"optillm_approach": "pit"}. Do not chain this technique: a chain
passes an answer on as if it were the question.

Environment: PIT_URL (default http://127.0.0.1:8000/v1) is the address of `pit serve`. PIT_SERVE_TOKEN is its token,
if it has one. PIT_SECONDS (default 25, a little above the 20 of `--improve-timeout`) is the longest wait for its
reply. After that, and whenever improving fails, the technique returns the model's own answer. Errors of the model pass
through.

A request may ask for more than a text: tools, a format, log-probabilities. Such an answer, and one that the model did
not finish as plain text, goes back to the client as the model gave it.

optillm 0.4 gives the technique the messages of the request, and takes a whole completion back. Older releases give the
conversation as one text with `User:` and `Assistant:` before the turns. If the turns alternate, the technique splits
the text into turns. Otherwise it sends the text unchanged to the model and does not improve the answer.

Tested with optillm 0.4.0, scripted models behind it (docs/real.md). Needs only the standard library.
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
MORE_THAN_TEXT = ("tools", "functions", "logprobs", "top_logprobs", "logit_bias")
PASSED = (
    *LIMITS, *MORE_THAN_TEXT, "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty",
    "response_format", "tool_choice", "parallel_tool_calls", "function_call", "reasoning_effort", "metadata", "user",
)  # fmt: skip
ROLES = {"User": "user", "Assistant": "assistant"}


def run(
    system_prompt: str,
    initial_query: str,
    client: Any,
    model: str,
    request_config: dict[str, Any] | None = None,
    messages: list[dict[str, Any]] | None = None,
) -> tuple[Any, int]:
    """Return the final answer, and the number of tokens that model and improver wrote.

    With ``messages`` the answer is a whole completion. A request for several choices (``n``) gets texts: for these
    optillm calls the technique once for each choice.
    """
    given = {name: value for name, value in (request_config or {}).items() if name in PASSED and value is not None}
    turns = messages or _turns(system_prompt, initial_query)
    reply = client.chat.completions.create(
        model=model, messages=turns or _one_turn(system_prompt, initial_query), **given
    )
    choice, usage = reply.choices[0], getattr(reply, "usage", None)
    text, tokens = choice.message.content or "", getattr(usage, "completion_tokens", 0) or 0
    trace = _improve({"prompt": turns, "response": text, **_bounds(given)}) if _is_text(turns, given, choice) else {}
    final, written = trace.get("final") or text, trace.get("generated_tokens", 0)
    if not messages or (request_config or {}).get("n", 1) != 1 or not hasattr(reply, "model_dump"):
        return final, tokens + written
    whole = reply.model_dump()
    if final != text:
        whole["choices"][0]["message"]["content"] = final
        whole["choices"][0]["finish_reason"] = "stop"
    for name in ("completion_tokens", "total_tokens") if usage else ():
        whole["usage"][name] += written
    return whole, tokens + written


def _is_text(turns: list[dict[str, Any]], given: dict[str, Any], choice: Any) -> bool:
    """Whether conversation, request and answer are plain text, so that another text may replace the answer."""
    formatted = given.get("response_format") not in (None, {"type": "text"})
    if not turns or formatted or any(given.get(name) for name in MORE_THAN_TEXT):
        return False
    if not all(isinstance(turn.get("content"), str) for turn in turns):
        return False
    message = choice.message
    beside = any(getattr(message, name, None) for name in ("tool_calls", "function_call", "refusal", "audio"))
    return choice.finish_reason in ("stop", "length") and bool((message.content or "").strip()) and not beside


def _system(prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": prompt}] if prompt else []


def _one_turn(system_prompt: str, query: str) -> list[dict[str, str]]:
    return [*_system(system_prompt), {"role": "user", "content": query}]


def _turns(system_prompt: str, query: str) -> list[dict[str, Any]]:
    """Split optillm's text into turns, after the system's; empty if the turns do not alternate."""
    parts = re.split(r"(?:\A|\n)(User|Assistant): ", query)
    if len(parts) == 1:
        return _one_turn(system_prompt, query)
    before, names, texts = parts[0], parts[1::2], parts[2::2]
    alternate = all(name == ("User", "Assistant")[index % 2] for index, name in enumerate(names))
    if before or not alternate or names[-1] != "User":
        return []
    turns = [{"role": ROLES[name], "content": text} for name, text in zip(names, texts, strict=True)]
    return [*_system(system_prompt), *turns]


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
