"""The page on which people compare answers, and its small JSON interface. Neither shows the names of the systems."""

import logging
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import AfterValidator, Field

from pitlm.core.errors import InputError
from pitlm.core.section import Section
from pitlm.core.verdicts import Comparison, Verdict
from pitlm.judge.votes import Ballot, Votes, ballots
from pitlm.serve.gate import Gate
from pitlm.serve.outcomes import Metrics
from pitlm.serve.settings import LOOPBACK, Settings
from pitlm.serve.web import address, bind, make_server, make_token, page

BODY_BYTES = 64 * 1024
CHOICES = {"left": Verdict.WIN, "tie": Verdict.TIE, "right": Verdict.LOSS}


def _tidy(name: str) -> str:
    """Normalize a name, so that a rater who types the name again is the same rater."""
    tidied = " ".join(unicodedata.normalize("NFC", name).split())
    if not tidied or not tidied.isprintable():
        raise ValueError("a name has at least one character, and only characters that can be seen")
    return tidied


Rater = Annotated[str, Field(max_length=60), AfterValidator(_tidy)]


class Undo(Section):
    """The request to take back a rater's last vote."""

    rater: Rater


class Vote(Undo):
    """The request to save a vote."""

    ballot: str
    choice: Literal["left", "tie", "right"]
    seconds: Annotated[float, Field(ge=0)]


def gate_settings(token: str | None) -> Settings:
    """Settings for the gate: clients need the token or, if there is none, a loopback name. Bodies are short."""
    hosts = LOOPBACK if token is None else None
    return Settings(token=token, hosts=hosts, open_paths=frozenset(), max_body=BODY_BYTES / 2**20)


def rating_app(comparisons: Sequence[Comparison], votes: Votes, token: str | None = None) -> FastAPI:
    """The page at ``/`` and its interface below ``/api``, for any number of raters at once.

    Without a ``token`` the application answers only requests that name a loopback address.
    """
    app = FastAPI(openapi_url=None)  # no page of documentation, which loads scripts from other sites
    app.add_middleware(Gate, settings=gate_settings(token), metrics=Metrics(), pages=True)

    @lru_cache(maxsize=64)
    def sheet(rater: str) -> dict[str, Ballot]:
        return {ballot.key: ballot for ballot in ballots(comparisons, rater, votes.seed)}

    def ballot_of(rater: str, key: str) -> Ballot:
        if key not in sheet(rater):
            raise HTTPException(404, "There is no such comparison; load the page again.")
        return sheet(rater)[key]

    @app.exception_handler(InputError)
    def unwritable(request: Request, error: InputError) -> JSONResponse:
        logging.getLogger("uvicorn.error").error("%s", error)  # for those who started the server, not for raters
        return JSONResponse({"detail": "The vote cannot be saved now. Tell the person who started this page."}, 503)

    @app.exception_handler(RequestValidationError)
    def refused(request: Request, error: RequestValidationError) -> JSONResponse:
        # The framework's own reply repeats the input, which may be NaN or half a character: JSON cannot hold these.
        return JSONResponse({"detail": [{"msg": one["msg"]} for one in error.errors()]}, 422)

    @app.get("/")
    def index() -> HTMLResponse:
        return page("rate.html")

    @app.get("/api/ballots")
    def list_ballots(rater: Annotated[Rater, Query()]) -> list[dict[str, Any]]:
        rated = votes.rated(list(sheet(rater).values()), rater)
        return [{"ballot": key, "rated": key in rated} for key in sheet(rater)]

    @app.get("/api/ballots/{key}")
    def show_ballot(key: str, rater: Annotated[Rater, Query()]) -> dict[str, Any]:
        shown = ballot_of(rater, key).shown
        return {"conversation": shown.prompt.as_messages(), "left": shown.first, "right": shown.second}

    @app.post("/api/votes")
    def vote(sent: Vote) -> dict[str, str]:
        votes.add(ballot_of(sent.rater, sent.ballot), sent.rater, CHOICES[sent.choice], sent.seconds)
        return {"ballot": sent.ballot}

    @app.post("/api/undo")
    def undo(sent: Undo) -> dict[str, str | None]:
        last = votes.undo(list(sheet(sent.rater).values()), sent.rater)
        return {"ballot": last.key if last else None}

    return app


def serve_rating(
    comparisons: Sequence[Comparison], votes: Votes, *, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve the page until SIGINT or SIGTERM. When the server listens, ``ready`` is called with the page's address.

    Raises:
        InputError: the address cannot be bound.
        KeyboardInterrupt: after an orderly end by SIGINT.
    """
    token = make_token(host)
    with bind(host, port) as listener:
        app = rating_app(comparisons, votes, token)
        ready(address(listener, token))
        make_server(app, proxy_headers=False, timeout_graceful_shutdown=2).run(sockets=[listener])
