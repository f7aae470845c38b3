"""A custom reward function for verl: its reward loop trains an improver with gaps from R_PIT.

    pit serve --gap runs/mine/gap/model --port 8003
    python -m verl.trainer.main_ppo reward.custom_reward_function.path=pit_reward.py \\
        reward.custom_reward_function.name=compute_score ...

A row's "prompt" is the conversation that the improver reads: x, y_ref as the assistant's turn, the ask. Its
"extra_info" holds "prompt" (x, a string or chat messages) and "reference" (y_ref). "data_source" and "ground_truth"
may be anything.

Environment: PIT_URL (default http://127.0.0.1:8003/v1) is the address of `pit serve`. PIT_SERVE_TOKEN is its token, if
it has one.

Tested with verl 0.9.1: its NaiveRewardManager calls the function (docs/real.md). No training was run. Needs only the
standard library.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

TRIES = 5


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], **more: Any
) -> dict[str, float]:
    """Return the gap between an answer and y_ref: 0 for no change, above 0 for a better answer."""
    reference, asked = extra_info["reference"], extra_info["prompt"]
    prompt = asked if isinstance(asked, str) else [dict(message) for message in asked]  # parquet files give an array
    response = solution_str.strip()
    gap = await asyncio.to_thread(score, prompt, reference, response)
    return {"score": gap, "gap": gap, "copied": float(response == reference)}


def score(prompt: str | list[dict[str, str]], reference: str, response: str) -> float:
    """Return R_PIT's gap. Raises at once if `pit serve` refuses the request; retries while it is busy or
    unreachable."""
    body = json.dumps({"prompt": prompt, "reference": reference, "response": response}).encode()
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("PIT_SERVE_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    url = os.environ.get("PIT_URL", "http://127.0.0.1:8003/v1").rstrip("/") + "/score"
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=180) as reply:
                return float(json.load(reply)["gap"])
        except OSError as error:  # urllib's own errors are OSErrors
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if refused or attempt == TRIES - 1:
                said = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
                raise RuntimeError(f"{url}: no gap: {error} {said}") from error
            time.sleep(2.0**attempt)
    raise AssertionError
