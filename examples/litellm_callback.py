"""LiteLLM's proxy improves its answers with a `pit serve` beside it.

    pit serve --run runs/quickstart --port 8000

    # config.yaml of the LiteLLM proxy, with this file in the same folder
    litellm_settings:
      callbacks: litellm_callback.improves

PIT_URL (default http://127.0.0.1:8000/v1) is where `pit serve` listens, PIT_SERVE_TOKEN its token if it has one, and
PIT_SECONDS (default 25, a little above its --improve-timeout) how long an answer may take; after that, and whenever
something fails, the answer goes out as it came.

Left as they are: streams (LiteLLM does not show them to this hook), and answers to requests with tools, a format,
several choices or content other than text, for an improved text could not keep what was asked for. `stop`,
`max_tokens` and `temperature` are kept. `usage` stays the model's own, for that is what LiteLLM charges.

Tested against CustomLogger's interface as LiteLLM's sources and documentation have it, and not with the real package.
Needs httpx, which LiteLLM brings.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import httpx
from litellm.integrations.custom_logger import CustomLogger

log = logging.getLogger("pit.litellm")

KEPT_FROM = ("tools", "functions", "logprobs", "logit_bias", "modalities", "audio")


class Improves(CustomLogger):  # type: ignore[misc]
    """Puts the improved answer in the answer's place."""

    def __init__(self) -> None:
        super().__init__()
        self.client = httpx.AsyncClient(timeout=None)  # one for all: a new one reads the certificates anew

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """Called by the proxy with a request and its whole answer; the answer is changed in place, and returned."""
        text = _text(data, response)
        if text is None:
            return response
        body = {"prompt": data["messages"], "response": text, **_bounds(data)}
        url = os.environ.get("PIT_URL", "http://127.0.0.1:8000/v1").rstrip("/") + "/improve"
        token = os.environ.get("PIT_SERVE_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with asyncio.timeout(float(os.environ.get("PIT_SECONDS", "25"))):
                reply = await self.client.post(url, json=body, headers=headers)
            reply.raise_for_status()
            final = reply.json()["final"]
        except (httpx.HTTPError, TimeoutError, ValueError, LookupError, TypeError) as error:
            log.warning("not improved: %s", type(error).__name__)  # neither address nor conversation
            return response
        if isinstance(final, str) and final.strip() and final != text:
            response.choices[0].message.content = final
            response.choices[0].finish_reason = "stop"
        return response


def _text(data: dict[str, Any], response: Any) -> str | None:
    """The answer's text, where another may take its place."""
    formatted = data.get("response_format") not in (None, {"type": "text"})
    if data.get("stream") or formatted or any(data.get(name) for name in KEPT_FROM) or not data.get("messages"):
        return None
    if not all(isinstance(message.get("content"), str) for message in data["messages"]):
        return None
    choices = getattr(response, "choices", None) or []
    if len(choices) != 1 or choices[0].finish_reason not in ("stop", "length"):
        return None
    message = choices[0].message
    beside = any(getattr(message, name, None) for name in ("tool_calls", "function_call", "refusal", "audio"))
    text = message.content
    return text if isinstance(text, str) and text.strip() and not beside else None


def _bounds(data: dict[str, Any]) -> dict[str, Any]:
    """What was asked of the answer and has to hold for any in its place."""
    stop = data.get("stop") or []
    limits = [limit for name in ("max_tokens", "max_completion_tokens") if (limit := data.get(name))]
    bounds = {
        "stop": [stop] if isinstance(stop, str) else stop,
        "max_tokens": min(limits, default=None),
        "temperature": data.get("temperature"),
        "seed": data.get("seed"),
    }
    return {name: value for name, value in bounds.items() if value not in (None, [])}


improves = Improves()
