"""R_PIT as the remote reward of OpenRLHF: prompts and answers as text, y_ref in the label."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError

from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.serve.error_replies import ApiError
from pitlm.serve.live_loop import AsyncScorer, Unavailable

router = APIRouter()
WANTED = 'JSON with "prompt" (a string or chat messages) and "reference"'
_END = re.compile(r"(?:<\|[^|<>\s]+\|>|</s>|<eos>|<end_of_turn>|<pad>|\s)+$")
"""Marks that tokenizers put at the end of an answer; the text comes with them, and R_PIT sets its own."""


class RewardRequest(BaseModel):
    """What OpenRLHF posts to ``remote_rm_url``: for each sample prompt and answer as one text, the prompt as the policy
    was shown it, and the data set's label. What else comes with them is ignored."""

    query: Annotated[list[str], Field(min_length=1)]
    prompts: list[str]
    labels: list[str | dict[str, Any]]


class Label(BaseModel):
    """What a data set's label has to say: x and y_ref, both as they are, without a chat template."""

    prompt: str | list[dict[str, Any]]
    reference: str


@router.post("/get_reward")
async def get_reward(request: Request, body: RewardRequest) -> dict[str, Any]:
    """The gap of each answer to its label's reference; 0 is no change."""
    scorer = scorer_of(request)
    for name in ("prompts", "labels"):
        if (count := len(getattr(body, name))) != len(body.query):
            raise InputError(f"{name}: found {count}, expected {len(body.query)}, one for each query")
    rows = enumerate(zip(body.query, body.prompts, body.labels, strict=True))
    items = [_improvement(number, *row) for number, row in rows]
    gaps = await asyncio.gather(*(scorer.gap(item) for item in items))  # the worker scores them in batches
    if not all(map(math.isfinite, gaps)):
        raise Unavailable("the gap model gave no number")
    return {"rewards": gaps, "scores": gaps, "extra_logs": {"gap": gaps}}


def scorer_of(request: Request) -> AsyncScorer:
    """The server's gap model.

    Raises:
        ApiError: 404, it has none.
    """
    scorer: AsyncScorer | None = request.app.state.scorer
    if scorer is None:
        raise ApiError(404, "no_gap_model", "This server has no gap model.")
    return scorer


def _improvement(number: int, query: str, shown: str, label: str | dict[str, Any]) -> Improvement:
    """(x, y_ref, y) of one sample.

    Raises:
        InputError: an answer or a label that cannot be read.
    """
    if not query.startswith(shown):
        raise InputError(f"query.{number}: found a text that its prompt does not begin, expected both as one")
    try:
        told = Label.model_validate_json(label) if isinstance(label, str) else Label.model_validate(label)
    except ValidationError as error:
        found = json.dumps(label)[:40] if label else "nothing"
        raise InputError(f"labels.{number}: found {found}, expected {WANTED}") from error
    try:
        prompt = Prompt.of(told.prompt)
    except InputError as error:
        raise InputError(f"labels.{number}.{error}") from error
    return Improvement(prompt, told.reference, _END.sub("", query[len(shown) :]).strip())
