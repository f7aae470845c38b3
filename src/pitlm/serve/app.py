"""`pit serve`: the application with its models and routes, and how it runs."""

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any, NoReturn

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from pitlm import __version__
from pitlm.core.errors import InputError
from pitlm.io.templates import template
from pitlm.io.visible import echo
from pitlm.loop.live_loop import AsyncProposer, AsyncScorer, Improving, Unavailable
from pitlm.serve.gate import Gate
from pitlm.serve.model_api import router
from pitlm.serve.model_process import load_models
from pitlm.serve.outcomes import Metrics
from pitlm.serve.proxying import ChatCompletions, Connections, PassThrough
from pitlm.serve.remote import RemoteImprover, RemoteScorer
from pitlm.serve.settings import Settings
from pitlm.serve.web import ApiError, address, bind, make_server, page
from pitlm.serve.worker import Worker

KEEP_ALIVE_SECONDS = 75  # longer than common clients keep an idle connection


def run(settings: Settings, *, host: str, port: int, check: bool = False, access_log: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished first, unless the signal comes again.

    Args:
        check: load the models, print what would be served, and stop.
        access_log: write a line for each request.

    Raises:
        InputError: models that cannot be loaded, or an address that cannot be listened on.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    # When the upstream breaks a stream off, our stream ends without its last message. That is no error of this server.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing" not in record.getMessage())
    logging.getLogger("pitlm").setLevel(logging.INFO if access_log else logging.WARNING)
    # With the default of 700, Python looks for garbage so often that a request costs a fifth more processor time. Each
    # look passes over the objects of the requests in flight.
    gc.set_threshold(20_000)
    asyncio.run(_serve(settings, host, port, check))


async def _serve(settings: Settings, host: str, port: int, check: bool) -> None:
    with bind(host, port) as listener:  # before the models load, so that a port in use fails at once
        async with serving(settings) as app:
            about = template("pitlm.serve", "about.j2").render(settings=settings, url=address(listener).rstrip("/"))
            echo(about, nl=False)  # without folding, so that a command can be copied
            if check:
                return
            for number in (signal.SIGINT, signal.SIGTERM):
                # uvicorn raises the signal again when it has stopped. This process must go on, to end the models.
                signal.signal(number, lambda *_: None)
            # No Date header from uvicorn, because the upstream's response has one already.
            server = make_server(app, lifespan="off", date_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS)
            await server.serve(sockets=[listener])


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[FastAPI]:
    """Yield the application with its models loaded. The end of the block ends the models.

    Raises:
        InputError: models that cannot be loaded, or settings that contradict one another.
    """
    if settings.token is not None and settings.upstream is not None and settings.upstream_key is None:
        raise InputError(
            "found a token for clients and no key for the upstream: clients send one Authorization header only; "
            "name the variable that holds the key with --upstream-key-env"
        )
    folders = settings.folders
    for folder in folders.values():
        if not folder.is_dir():  # an error at once; loading would first import torch
            raise InputError(f"{folder}: found no such folder, expected a trained model's, or a URL")
    metrics, upstream, worker = Metrics(), None, None
    improver: AsyncProposer | None = None
    scorer: AsyncScorer | None = None
    async with AsyncExitStack() as stack:
        if settings.upstream is not None:
            there = Connections(settings.upstream, key=settings.upstream_key, seconds=settings.upstream_seconds)
            upstream = await stack.enter_async_context(aclosing(there))
        if folders:
            worker = Worker(partial(load_models, settings), settings, metrics.batch.observe)
            await stack.enter_async_context(aclosing(worker))
            await worker.start()
            improver, scorer = worker if "improver" in folders else None, worker if "gap" in folders else None
        if settings.improver and improver is None:
            improver = await stack.enter_async_context(aclosing(RemoteImprover(settings)))
        if settings.gap and scorer is None:
            scorer = await stack.enter_async_context(aclosing(RemoteScorer(settings.gap, key=settings.models_key)))
        yield make_app(settings, metrics, upstream, improver=improver, scorer=scorer)


def make_app(
    settings: Settings,
    metrics: Metrics,
    upstream: Connections | None,
    *,
    improver: AsyncProposer | None,
    scorer: AsyncScorer | None,
) -> FastAPI:
    """The application and its routes, for an upstream and for models that are ready to use."""
    app = FastAPI(title="pitlm", version=__version__, docs_url=None, redoc_url=None)
    improving = Improving(improver, scorer, settings.loop, settings.improve_seconds) if improver and scorer else None
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    for kind in (HTTPException, RequestValidationError, InputError, Unavailable):
        app.add_exception_handler(kind, _plain_error)
    app.state.improving, app.state.scorer = improving, scorer
    app.include_router(router)

    @app.get("/")
    async def try_it() -> Response:
        asked = "token" if settings.token else "key" if upstream and not settings.upstream_key else ""
        return page("try.html", upstream=upstream is not None, improves=improving is not None, secret=asked)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """The server is alive. ``degraded``: the models are starting again, and answers go out unchanged meanwhile."""
        away = any(isinstance(model, Worker) and not model.ready for model in (improver, scorer))
        able = {"improves": improving is not None, "scores": scorer is not None}
        return {"status": "degraded" if away else "ok", **able, "version": __version__}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    if upstream is not None:
        chat = ChatCompletions(upstream, improving, metrics, settings.heartbeat)
        app.router.routes.append(Route("/v1/chat/completions", chat, methods=["POST"]))
        app.router.routes.append(Route("/v1/{path:path}", PassThrough(upstream)))
    return app


async def _plain_error(request: Request, error: Exception) -> NoReturn:
    """Turn errors of the framework and of bad input into an ApiError, which the gate sends."""
    status, code, message = 400, "invalid_value", str(error)
    if isinstance(error, HTTPException):
        status, code, message = error.status_code, "http_error", f"{error.detail}; the API is below /v1"
    elif isinstance(error, Unavailable):
        status, code = 503, "models_unavailable"
    elif isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        message = f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}"
    raise ApiError(status, code, message) from error
