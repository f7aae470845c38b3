"""`pit improve --engine ray` on a local cluster of two workers: what one process would have written, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from builders import generator_checkpoint, scorer_checkpoint

from pitlm.cli.main import main

pytestmark = pytest.mark.timeout(600)
ROWS, PART = 180, 40
WORDS = ["price", "lamp", "small", "red", "nine", "help", "question", "many"]


@pytest.fixture(scope="module")
def models(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("improver", "policy"):
        generator_checkpoint(bases("words"), folder / kind, kind)
    scorer_checkpoint(bases("words"), folder / "gap", "gap")
    return folder


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three files; some rows have no response, some fail, among them a whole part."""
    folder = tmp_path_factory.mktemp("answers")
    for name, numbers in (("a", range(70)), ("b", range(70, 150)), ("c", range(150, ROWS))):
        with (folder / f"{name}.jsonl").open("w") as lines:
            for n in numbers:
                row = {"id": n, "prompt": f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} ?", "response": f"the {WORDS[n % 7]} ."}
                if n % 10 == 3:
                    del row["response"]
                if n == 7 or 80 <= n < 120:
                    row["prompt"] = "price " * 400
                lines.write(json.dumps(row) + "\n")
    return folder


def arguments(models: Path, answers: Path, out: Path, *more: str) -> list[str]:
    options = [f"--{kind}={models / kind}" for kind in ("improver", "gap", "policy")]
    return ["improve", str(answers), "-o", str(out), *options, "--temperature", "1", *more]


def on_ray(models: Path, answers: Path, out: Path, *more: str) -> list[str]:
    return arguments(models, answers, out, "--engine", "ray", "--workers", "2", "--part-rows", str(PART), *more)


def run(command: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(command)
    return stop.value.code


@pytest.fixture(scope="module")
def whole(models: Path, answers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    assert run(arguments(models, answers, out)) == 0
    return out


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def assert_same(out: Path, whole: Path) -> None:
    assert b"".join(path.read_bytes() for path in sorted(out.glob("*"))) == whole.read_bytes()
    failed = out.with_name("out.failed.jsonl")
    assert failed.read_bytes() == whole.with_name("out.failed.jsonl").read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.failed.jsonl"]


def writer_of(journal: Path) -> psutil.Process | None:
    """The process that has the file open, this one apart."""
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"].startswith("ray::") and any(f.path == str(journal) for f in process.open_files()):
                return process
        except psutil.Error:
            continue
    return None


@pytest.mark.usefixtures("two_workers")
def test_a_killed_worker_loses_and_repeats_nothing(
    models: Path, answers: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, killed = tmp_path / "out", {}

    def kill() -> None:
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            for journal in (tmp_path / "out.partial" / "parts").glob("*.partial"):
                kept = journal.read_bytes() if journal.exists() else b""
                if 3 < kept.count(b"\n") < PART and (process := writer_of(journal)):
                    process.send_signal(signal.SIGKILL)
                    killed[journal] = kept
                    return
            time.sleep(0.005)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    code = run(on_ray(models, answers, out, "--tokens-per-batch", "64"))
    thread.join()
    assert code == 0, capsys.readouterr().err
    assert killed
    assert_same(out, whole)
    assert f"{ROWS - 41} answers" in capsys.readouterr().out
