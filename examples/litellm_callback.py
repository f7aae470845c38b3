"""A callback with which LiteLLM's proxy improves its answers through `pit serve`.

    pit serve --run runs/mine --port 8000

    # config.yaml of the LiteLLM proxy, with this file in the same folder. The proxy wants a LITELLM_MASTER_KEY, too.
    litellm_settings:
      callbacks: litellm_callback.improves

Environment: PIT_URL (default http://127.0.0.1:8000/v1) is the address of `pit serve`. PIT_SERVE_TOKEN is its token,
if it has one. PIT_SECONDS (default 25, a little above the 20 of `--improve-timeout`) is the longest time to improve an
answer. After that, and whenever something fails, the callback returns the original answer.

The callback does not change streams (LiteLLM does not pass them to this hook), nor answers to requests with tools, a
format, several choices or content other than text: an improved text might not be what such a request asks for. Improved
answers keep `stop`, `max_tokens` and `temperature`. `usage` stays the model's own, because LiteLLM charges by it.

Tested with litellm 1.108.0, scripted models behind it (docs/real.md). Needs httpx, which LiteLLM installs.
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
    """Replaces each answer by its improved answer."""

    def __init__(self) -> None:
        super().__init__()
        self.client = httpx.AsyncClient(timeout=None)  # shared: each new client reads the certificates again

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """Improve the answer in place and return it. The proxy calls this hook with each request and its whole
        answer."""
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
            log.warning("not improved: %s", type(error).__name__)  # the log gets neither address nor conversation
            return response
        if isinstance(final, str) and final.strip() and final != text:
            response.choices[0].message.content = final
            response.choices[0].finish_reason = "stop"
        return response


def _text(data: dict[str, Any], response: Any) -> str | None:
    """Return the answer's text; None if the answer must not be replaced."""
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
    """Return the limits of the request, which an improved answer has to keep too."""
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
