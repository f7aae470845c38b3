"""The real engines of `make real`: an environment of its own for each, and their servers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "real"
PROGRAMS = ROOT / "tests" / "real" / "programs"
ENGINES = yaml.safe_load((ROOT / "tests" / "real" / "engines.yaml").read_text(encoding="utf-8"))
VLLM_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
"""The environment of vLLM's build for CPUs."""
PATIENCE = 900  # seconds for a server to start, on a busy machine


@dataclass(frozen=True)
class Engine:
    """An engine in its environment under build/real."""

    name: str

    @property
    def folder(self) -> Path:
        return BUILD / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self) -> Engine:
        """Make the environment, unless it has what engines.yaml asks for."""
        wanted = ENGINES[self.name]
        stamp, mark = self.folder / "installed", hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
        if stamp.is_file() and stamp.read_text() == mark:
            return self
        shutil.rmtree(self.folder, ignore_errors=True)
        # Neither a pip of its own nor compiled modules: most of what is installed is never imported.
        run(sys._base_executable, "-m", "venv", "--without-pip", self.folder)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python)
        run(*pip, "install", "-q", "--no-compile", *wanted["install"])
        if alone := wanted.get("alone"):
            run(*pip, "install", "-q", "--no-compile", "--no-deps", *alone)
        if remove := wanted.get("remove"):
            run(*pip, "uninstall", "-q", "-y", *remove)
        stamp.write_text(mark)
        return self

    @property
    def version(self) -> str:
        """The version of its package; empty if the engine is not installed."""
        code = f"from importlib.metadata import version; print(version({ENGINES[self.name]['package']!r}))"
        return run(self.python, "-c", code).strip() if self.python.is_file() else ""

    def ask(self, program: str, told: Any, **environment: str) -> Any:
        """Run one of the programs in this environment. Give it JSON, and return the JSON that it prints last."""
        printed = run(self.python, PROGRAMS / program, told=json.dumps(told), **environment)
        return json.loads(printed.strip().splitlines()[-1])


@cache
def engine(name: str) -> Engine:
    """The engine with this name, installed."""
    return Engine(name).install()


def run(*command: object, told: str | None = None, **environment: str) -> str:
    """Run a command to its end; return what it printed on stdout. A failure shows the end of what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        input=told,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(
            f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


def pit(*arguments: object, **environment: str) -> str:
    """Run a `pit` command of this checkout."""
    return run(sys.executable, "-m", "pitlm.cli.main", *arguments, **environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(name: str, url: str, *command: object, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block, from the moment when ``url`` answers. Its log is build/real/logs/NAME."""
    log = BUILD / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1", **environment}
    with (
        log.open("wb") as file,
        subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, env=settings, start_new_session=True
        ) as process,
    ):
        try:
            wait_for(url, process, log)
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(20)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"{log}: the server stopped\n{log.read_text(errors='replace')[-4000:]}")
        try:
            if httpx.get(url, timeout=5).status_code < 500:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{log}: no answer at {url}\n{log.read_text(errors='replace')[-4000:]}")


@contextmanager
def pit_serve(name: str, *arguments: object, **environment: str) -> Iterator[str]:
    """Run `pit serve`; yield its address, which ends in /v1."""
    port = free_port()
    command = (sys.executable, "-m", "pitlm.cli.main", "serve", "--port", port, *arguments)
    with serving(name, f"http://127.0.0.1:{port}/healthz", *command, **environment):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def llama_cpp(name: str, model: Path, *, slots: int = 8) -> Iterator[str]:
    """Run llama.cpp's own server; yield its address, which ends in /v1."""
    port = free_port()
    command = (engine("llama.cpp").python, PROGRAMS / "serve_llama_cpp.py", model, port, slots)
    with serving(name, f"http://127.0.0.1:{port}/health", *command):
        yield f"http://127.0.0.1:{port}/v1"


def litellm_command(config: Path) -> tuple[object, ...]:
    """The command that starts LiteLLM's proxy; a port is to follow."""
    return engine("litellm").folder / "bin" / "litellm", "--config", config


def optillm_command(upstream: str) -> tuple[object, ...]:
    """The command that starts optillm in front of an API; a port is to follow."""
    return engine("optillm").python, "-c", "from optillm import main; main()", "--base-url", upstream


def improved(url: str, model: str, rows: list[dict[str, Any]], **more: Any) -> list[str]:
    """What a server's improver makes of each row's answer, asked as an OpenAI client would: greedy.

    If a row has an ``ask``, the client sends this turn itself.
    """
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    texts = []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        turns += [{"role": "user", "content": row["ask"]}] if "ask" in row else []
        reply = client.chat.completions.create(model=model, messages=turns, temperature=0, **more)
        texts.append((reply.choices[0].message.content or "").strip())
    return texts


def proposals(rows: list[dict[str, Any]]) -> list[str]:
    """The improver's texts in the rows of `pit improve`."""
    return [row["pit"]["rounds"][0]["proposal"] for row in rows]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
