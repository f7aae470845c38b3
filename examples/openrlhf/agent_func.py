"""An agent for OpenRLHF, which trains an improver: the model reads x, y_ref and the ask, and R_PIT's gap is the reward.

    pit serve --gap runs/mine/gap/model --port 8003
    python -m openrlhf.cli.train_ppo_ray --train.agent_func_path agent_func.py \\
        --data.input_key prompt --data.label_key label ...

The label of a row is JSON with "prompt" (x, a string or chat messages) and "reference" (y_ref). If a label has no
reference, the model in training first answers x, then improves its own answer. It is not trained on these first
answers. If every row has a reference, you need no agent: ``--reward.remote_url http://127.0.0.1:8003/get_reward``
does the same (docs/engines.md).

Environment: PIT_URL (default http://127.0.0.1:8003/v1) is the address of `pit serve`. PIT_SERVE_TOKEN is its token, if
it has one. PIT_ASK is the turn after y_ref that the gap model was trained with ('ask' in its pit.json).
PIT_TRUNCATED_PENALTY (default 1, as in pitlm's recipes) is subtracted from the gap of an answer that was cut off.

OpenRLHF's own SingleTurnAgentExecutor generates. The agent returns its sample with reward, scores and logs set. Tested
with OpenRLHF 0.11.2 and a scripted engine (docs/real.md). No training was run. Needs only the standard library.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

TRIES = 5
ASK = "Please write a better answer."


class AgentExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]
    """Samples one improvement of y_ref, with its gap as the reward."""

    def __init__(self) -> None:
        super().__init__(remote_rm_url=None)

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        **more: Any,
    ) -> dict[str, Any]:
        """Return a sample for OpenRLHF. ``prompt`` is not used, because the label has x without a template."""
        told = json.loads(label)
        asked = told["prompt"]
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)

        async def answer(conversation: list[dict[str, str]]) -> tuple[dict[str, Any], str]:
            shown = hf_tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            made = await super(AgentExecutor, self).execute(
                shown, label, sampling_params, max_length, hf_tokenizer, llm_engine, **more
            )
            start, end = made["action_ranges"][-1]
            return made, hf_tokenizer.decode(made["observation_tokens"][start:end], skip_special_tokens=True).strip()

        reference = told.get("reference")
        if reference is None:
            _, reference = await answer(messages)
        ask = {"role": "user", "content": os.environ.get("PIT_ASK", ASK)}
        output, response = await answer([*messages, {"role": "assistant", "content": reference}, ask])
        gap = await asyncio.to_thread(score, messages, reference, response)
        cut = bool(output.get("truncated"))
        reward = gap - cut * float(os.environ.get("PIT_TRUNCATED_PENALTY", "1"))
        output.update(reward=reward, scores=reward, extra_logs={"gap": gap, "copied": float(response == reference)})
        return output


def score(prompt: list[dict[str, str]], reference: str, response: str) -> float:
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
