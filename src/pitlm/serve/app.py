"""The application: its settings, its models, its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route

from pitlm import __version__
from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.core.section import PositiveInt
from pitlm.engines.endpoint import ChatEndpoint
from pitlm.serve import reward_api as rewards
from pitlm.serve.chat_replies import finite
from pitlm.serve.error_replies import ApiError
from pitlm.serve.gate import Gate
from pitlm.serve.live_loop import AsyncProposer, AsyncScorer, Bounds, Improving, Unavailable, Unfit
from pitlm.serve.metrics import Metrics
from pitlm.serve.model_process import load_models
from pitlm.serve.pages import page
from pitlm.serve.proxying import ChatCompletions, PassThrough
from pitlm.serve.remote import RemoteImprover, RemoteScorer
from pitlm.serve.reward_api import scorer_of
from pitlm.serve.settings import Settings
from pitlm.serve.upstream import Upstream
from pitlm.serve.worker import Worker


def is_url(place: str) -> bool:
    """Whether a model is somebody else's to serve."""
    return place.startswith(("http://", "https://"))


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application with its models loaded; they are let go when the block ends.

    Raises:
        InputError: models that cannot be loaded, or settings that contradict one another.
    """
    if settings.token is not None and settings.upstream is not None and settings.upstream_key is None:
        raise InputError(
            "found a token for clients and no key for the upstream: clients send one Authorization header only; "
            "name the variable that holds the key with --upstream-key-env"
        )
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        upstream = None
        if settings.upstream is not None:
            upstream = Upstream(settings.upstream, key=settings.upstream_key, seconds=settings.upstream_seconds)
            stack.push_async_callback(upstream.close)
        worker = await _local_models(settings, metrics, stack)
        improver: AsyncProposer | None = worker if settings.improver else None
        if settings.improver and is_url(settings.improver):
            endpoint = ChatEndpoint(
                settings.improver_model,
                settings.improver,
                key=settings.models_key or "none",  # never a key that is meant for another server
                timeout=settings.improve_seconds,
                retries=1,
                concurrency=settings.concurrency,
            )
            improver = remote = RemoteImprover(endpoint, settings.improver_ask)
            stack.push_async_callback(remote.close)
        scorer: AsyncScorer | None = worker if settings.gap else None
        if settings.gap and is_url(settings.gap):
            scorer = elsewhere = RemoteScorer(settings.gap, key=settings.models_key)
            stack.push_async_callback(elsewhere.close)
        is_ready = (lambda: True) if worker is None else (lambda: worker.ready)
        yield make_app(settings, metrics, upstream, improver=improver, scorer=scorer, is_ready=is_ready)


async def _local_models(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Worker | None:
    """The worker with those models that are not remote; None where both are."""
    places = (settings.improver, settings.gap, settings.reward)
    paths = [Path(place) if place and not is_url(place) else None for place in places]
    if paths[:2] == [None, None]:
        return None
    for path in filter(None, paths):
        if not path.is_dir():  # known at once, where loading would first import torch
            raise InputError(f"{path}: found no such folder, expected a trained model's, or a URL")
    patience = 2 * settings.improve_seconds
    worker = Worker(
        partial(load_models, *paths, dtype=settings.dtype, quantize=settings.quantize),
        patience=patience,
        largest=settings.batch,
        observe=metrics.batch.observe,
    )
    stack.push_async_callback(worker.stop)
    await worker.start()
    return worker


def make_app(
    settings: Settings,
    metrics: Metrics,
    upstream: Upstream | None,
    *,
    improver: AsyncProposer | None,
    scorer: AsyncScorer | None,
    is_ready: Callable[[], bool] = lambda: True,
) -> FastAPI:
    """The routes, over models that are there already."""
    app = FastAPI(title="pitlm", version=__version__, docs_url=None, redoc_url=None)
    improving = None
    if improver is not None and scorer is not None:
        improving = Improving(improver, scorer, settings.loop, settings.improve_seconds)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    for kind in (HTTPException, RequestValidationError, InputError, Unavailable):
        app.add_exception_handler(kind, _plain_error)
    app.state.improving, app.state.scorer = improving, scorer
    app.include_router(router)
    app.include_router(rewards.router)

    @app.get("/")
    async def try_it() -> Response:
        asked = "token" if settings.token else "key" if upstream and not settings.upstream_key else ""
        return page("try.html", upstream=upstream is not None, improves=improving is not None, secret=asked)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Alive; ``degraded`` where the models are being started again and answers go out as they come."""
        status = "ok" if is_ready() else "degraded"
        return {
            "status": status,
            "improves": improving is not None,
            "scores": scorer is not None,
            "version": __version__,
        }

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    if upstream is not None:
        chat = ChatCompletions(upstream, improving, metrics, heartbeat=settings.heartbeat)
        app.router.routes.append(Route("/v1/chat/completions", chat, methods=["POST"]))
        app.router.routes.append(Route("/v1/{path:path}", PassThrough(upstream)))
    return app


Messages = str | list[dict[str, Any]]
router = APIRouter(prefix="/v1")


class ScoreRequest(BaseModel):
    """Two responses to one prompt."""

    model_config = ConfigDict(extra="forbid")
    prompt: Messages
    reference: str
    response: str


class ImproveRequest(BaseModel):
    """A response to improve; ``rounds`` at most as many as the server's. ``stop``, ``max_tokens`` and ``temperature``
    are what the response was asked for with, and hold for what takes its place."""

    model_config = ConfigDict(extra="forbid")
    prompt: Messages
    response: Annotated[str, Field(min_length=1)]
    rounds: PositiveInt | None = None
    seed: int | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None


@router.get("/score")
async def margin(request: Request) -> dict[str, float | None]:
    """The margin that the gap model was calibrated to, 0 where it was not; null: nothing is to be accepted."""
    return {"margin": finite(await scorer_of(request).margin())}


@router.post("/score")
async def score(request: Request, body: ScoreRequest) -> dict[str, float | None]:
    """The gap: how much better ``response`` is than ``reference`` as an answer to ``prompt``; 0 is no change."""
    item = Improvement(Prompt.of(body.prompt), body.reference, body.response)
    return {"gap": finite(await scorer_of(request).gap(item))}


@router.post("/improve")
async def improve(request: Request, body: ImproveRequest) -> dict[str, Any]:
    """The trace of one loop: rounds, gaps, the final response, why it stopped."""
    improving: Improving | None = request.app.state.improving
    if improving is None:
        raise ApiError(404, "no_improver", "This server has no improver and gap model.")
    bounds = Bounds(**body.model_dump(exclude={"prompt", "response"}))
    outcome = await improving(Prompt.of(body.prompt), body.response, bounds)
    if outcome.failure and not outcome.trace.rounds:
        raise Unavailable(outcome.failure)
    trace = outcome.trace.as_dict()
    for row in trace["rounds"]:
        row["gap"] = finite(row["gap"])
        row |= {"gaps": list(map(finite, row["gaps"]))} if "gaps" in row else {}
    return trace


async def _plain_error(request: Request, error: Exception) -> Response:
    """Errors of the framework and of bad input, in the shape of all the others."""
    status, code, message = 400, "invalid_value", str(error)
    if isinstance(error, HTTPException):
        status, code, message = error.status_code, "http_error", f"{error.detail}; the API is below /v1"
    elif isinstance(error, Unavailable) and not isinstance(error, Unfit):
        status, code = 503, "models_unavailable"
    elif isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        message = f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}"
    return Response(ApiError(status, code, message).body(), status, media_type="application/json")
