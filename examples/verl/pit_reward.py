"""verl's reward loop asks R_PIT: a custom reward function for the training of an improver.

    pit serve --gap runs/mine/gap/model --port 8003
    python -m verl.trainer.main_ppo reward.custom_reward_function.path=pit_reward.py \\
        reward.custom_reward_function.name=compute_score ...

A row's "prompt" is what the improver is shown (x, y_ref as the assistant's turn, the ask), and its "extra_info" has
"prompt" (x, a string or chat messages) and "reference" (y_ref). "data_source" and "ground_truth" may be anything.

PIT_URL (default http://127.0.0.1:8003/v1) is where `pit serve` listens, and PIT_SERVE_TOKEN its token if it has one.

Tested with the arguments that verl's reward managers pass, as its sources have them, and not with the package.
Standard library only.
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
    """The gap of an answer to y_ref: 0 for no change, above it for a better one."""
    reference, asked = extra_info["reference"], extra_info["prompt"]
    prompt = asked if isinstance(asked, str) else [dict(message) for message in asked]  # parquet gives an array
    response = solution_str.strip()
    gap = await asyncio.to_thread(score, prompt, reference, response)
    return {"score": gap, "gap": gap, "copied": float(response == reference)}


def score(prompt: str | list[dict[str, str]], reference: str, response: str) -> float:
    """R_PIT's gap. What `pit serve` refuses is an error at once; what it cannot do now is tried again."""
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
