"""A proxy with scripted models in front of a scripted upstream; both are real servers on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from scripted_models import Judge, Writer
from scripted_upstream import Upstream, served

from pitlm.core.loop_section import LoopSection
from pitlm.serve.app import make_app
from pitlm.serve.outcomes import Metrics
from pitlm.serve.proxying import Connections
from pitlm.serve.settings import Settings

HTTP = httpx.Client(timeout=600)
OPENAI = openai.DefaultHttpxClient()  # not always of the same library


@dataclass
class Proxy:
    """The two servers' URLs, and the objects behind them."""

    url: str
    direct: str
    upstream: Upstream
    writer: Writer
    judge: Judge

    def client(self, **more: Any) -> openai.OpenAI:
        """The official client. Tests share its connections, because reading the certificates again is slow."""
        return openai.OpenAI(
            **{
                "base_url": self.url,
                "api_key": "client-key",
                "max_retries": 0,
                "http_client": OPENAI,
                "timeout": 600,
                **more,
            }
        )

    def asynchronous(self) -> openai.AsyncOpenAI:
        plain = openai.DefaultAsyncHttpxClient(verify=False)  # loopback needs no certificates
        return openai.AsyncOpenAI(base_url=self.url, api_key="k", max_retries=0, http_client=plain)

    def straight(self) -> openai.OpenAI:
        return self.client(base_url=self.direct)


@contextmanager
def proxied(improves: bool = True, **settings: Any):
    scripted, writer, judge = Upstream(), Writer(), Judge()
    with served(scripted) as up:

        @asynccontextmanager
        async def application():
            chosen = Settings(
                **{"loop": LoopSection(rounds=3), "improve_seconds": 300.0, "heartbeat": 0.02, **settings}
            )
            there = Connections(f"{up}/v1", key=chosen.upstream_key, seconds=chosen.upstream_seconds)
            models = {"improver": writer, "scorer": judge} if improves else {"improver": None, "scorer": None}
            yield make_app(chosen, Metrics(), there, **models)
            await there.aclose()

        with served(application()) as here:
            yield Proxy(f"{here}/v1", f"{up}/v1", scripted, writer, judge)


HEAVY = "torch transformers trl peft accelerate datasets tokenizers scipy statsmodels sklearn pandas matplotlib pyarrow numpy"
WITHOUT = f"""
import sys
for name in {HEAVY.split()}:
    sys.modules[name] = None  # to import it is an error
from pitlm.cli.main import main
main()
"""


@contextmanager
def running(*arguments, program=("-c", WITHOUT), **environment):
    """Run `pit serve` on a free port; yield process and URL once it serves."""
    command = [sys.executable, *program, "serve", "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            first = process.stdout.readline()
            found = re.match(r"Serving (\S+)", first)
            assert found, first + (process.kill() or process.stdout.read())
            yield process, found[1]
        finally:
            process.kill()
