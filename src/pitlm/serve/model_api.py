"""The models over HTTP: scores and improvements, and R_PIT as the remote reward of OpenRLHF."""

import asyncio
import json
import math
import re
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.core.section import Section
from pitlm.loop.live_loop import AsyncScorer, Bounds, Improving, Unavailable
from pitlm.serve.outcomes import finite
from pitlm.serve.web import ApiError

router = APIRouter()
Messages = str | list[dict[str, Any]]
Text = Annotated[str, Field(min_length=0)]
"""A text without half a character. Pydantic looks for half a character only where a text has a least length."""
WANTED = 'JSON with "prompt" (a string or chat messages) and "reference"'
_END = re.compile(r"(?:<\|[^|<>\s]+\|>|</s>|<eos>|<end_of_turn>|<pad>|\s)+$")
"""Marks that tokenizers put at the end of an answer. OpenRLHF sends the answer with these; R_PIT adds its own mark."""


class ScoreRequest(Section):
    """Two responses to one prompt."""

    prompt: Messages
    reference: Text
    response: Text


class ImproveRequest(Bounds):
    """A response to improve, and the bounds for the improved response. The server's own ``rounds`` is the maximum."""

    prompt: Messages
    response: Annotated[str, Field(min_length=1)]


class RewardRequest(BaseModel):
    """The request that OpenRLHF posts to ``remote_rm_url``; other fields of that request are ignored.

    Attributes:
        query: prompt and answer of each sample, as one text.
        prompts: prompt of each sample, as the policy read it.
        labels: label of each sample in the data set, as :class:`Label` or as its JSON text.
    """

    query: Annotated[list[Text], Field(min_length=1)]
    prompts: list[str]
    labels: list[str | dict[str, Any]]


class Label(BaseModel):
    """The label of a sample: x and y_ref, both without a chat template."""

    prompt: Messages
    reference: Text


def _scorer(request: Request) -> AsyncScorer:
    """The server's gap model.

    Raises:
        ApiError: 404, the server has no gap model.
    """
    scorer: AsyncScorer | None = request.app.state.scorer
    if scorer is None:
        raise ApiError(404, "no_gap_model", "This server has no gap model.")
    return scorer


@router.get("/v1/score")
async def margin(request: Request) -> dict[str, float | None]:
    """The calibrated margin of the gap model; 0 without a calibration. Null means: accept no proposal."""
    return {"margin": finite(await _scorer(request).margin())}


@router.post("/v1/score")
async def score(request: Request, body: ScoreRequest) -> dict[str, float | None]:
    """The gap: how much better ``response`` is than ``reference`` as an answer to ``prompt``; 0 is no change."""
    item = Improvement(Prompt.of(body.prompt), body.reference, body.response)
    return {"gap": finite(await _scorer(request).gap(item))}


@router.post("/v1/improve")
async def improve(request: Request, body: ImproveRequest) -> Response:
    """The trace of one loop: rounds, gaps, the final response and the reason to stop."""
    improving: Improving | None = request.app.state.improving
    if improving is None:
        raise ApiError(404, "no_improver", "This server has no improver and gap model.")
    outcome = await improving(Prompt.of(body.prompt), body.response, body)
    if outcome.failure and not outcome.trace.rounds:
        raise Unavailable(outcome.failure)
    trace = to_json(outcome.trace.as_dict(), inf_nan_mode="null")  # JSON has no number for a gap that was not measured
    return Response(trace, media_type="application/json")


@router.post("/get_reward")
async def get_reward(request: Request, body: RewardRequest) -> dict[str, Any]:
    """The gap of each answer to its label's reference; 0 is no change."""
    scorer = _scorer(request)
    for name in ("prompts", "labels"):
        if (count := len(getattr(body, name))) != len(body.query):
            raise InputError(f"{name}: found {count}, expected {len(body.query)}, one for each query")
    rows = enumerate(zip(body.query, body.prompts, body.labels, strict=True))
    items = [_improvement(number, *row) for number, row in rows]
    gaps = await asyncio.gather(*(scorer.gap(item) for item in items))  # the worker scores them in batches
    if not all(map(math.isfinite, gaps)):
        raise Unavailable("the gap model gave no number")
    return {"rewards": gaps, "scores": gaps, "extra_logs": {"gap": gaps}}


def _improvement(number: int, query: str, shown: str, label: str | dict[str, Any]) -> Improvement:
    """(x, y_ref, y) of one sample.

    Raises:
        InputError: an answer or a label that cannot be read.
    """
    if not query.startswith(shown):
        raise InputError(f"query.{number}: found a text that its prompt does not begin, expected both as one")
    try:
        told = Label.model_validate_json(label) if isinstance(label, str) else Label.model_validate(label)
        prompt = Prompt.of(told.prompt)
    except ValidationError as error:
        found = json.dumps(label)[:40] if label else "nothing"
        raise InputError(f"labels.{number}: found {found}, expected {WANTED}") from error
    except InputError as error:
        raise InputError(f"labels.{number}.{error}") from error
    return Improvement(prompt, told.reference, _END.sub("", query[len(shown) :]).strip())
