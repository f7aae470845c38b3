"""Running the application under uvicorn, until it is told to stop and has finished what is in flight."""

from __future__ import annotations

import asyncio
import logging
import signal

import uvicorn
from rich.text import Text

from pitlm.io.console import make_console
from pitlm.serve.app import serving
from pitlm.serve.listener import address, bind
from pitlm.serve.settings import Settings

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75  # above the time after which common clients let an idle connection go


def run(settings: Settings, *, host: str, port: int, check: bool = False, access_log: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished first, unless the signal comes again.

    Args:
        check: load the models, say what would be served, and stop.
        access_log: write a line for each request.

    Raises:
        InputError: models that cannot be loaded, or an address that cannot be listened on.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    # A stream that the upstream breaks off has no end here either: no error of ours.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing" not in record.getMessage())
    logging.getLogger("pitlm").setLevel(logging.INFO if access_log else logging.WARNING)
    asyncio.run(_serve(settings, host, port, check))


async def _serve(settings: Settings, host: str, port: int, check: bool) -> None:
    with bind(host, port) as listener:  # before the models are loaded: a port in use is said at once
        async with serving(settings) as app:
            listener.listen(BACKLOG)
            for line in _about(settings, address(listener).rstrip("/")):
                make_console().print(Text(line), soft_wrap=True)  # to be copied whole
            if check:
                return
            # Date and Server are the upstream's to say: twice is once too often.
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
            for number in (signal.SIGINT, signal.SIGTERM):
                # uvicorn raises the signal again when it is done; by then the models are still to be let go.
                signal.signal(number, lambda *_: None)
            await uvicorn.Server(config).serve(sockets=[listener])


def _about(settings: Settings, url: str) -> list[str]:
    improves = settings.improver is not None and settings.gap is not None
    what = {
        "upstream": settings.upstream or "none",
        "improver": settings.improver or "none",
        "gap model": " with ".join(filter(None, (settings.gap, settings.reward))) or "none",
        "rounds": f"{settings.loop.rounds}, at most {settings.improve_seconds:g} s" if improves else "none",
    }
    path = "chat/completions" if settings.upstream else "score"
    chat = '{"model": "NAME", "messages": [{"role": "user", "content": "Hello"}]}'
    pair = '{"prompt": "Hello", "reference": "No.", "response": "Hello to you."}'
    return [
        f"Serving {url}/v1",
        *(f"  {name:10} {value}" for name, value in what.items()),
        *([f"Try: {url}/ in a browser"] if improves else []),
        f"Try: curl {url}/v1/{path} -H 'content-type: application/json' -d '{chat if settings.upstream else pair}'",
    ]
