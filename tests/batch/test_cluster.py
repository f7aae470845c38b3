"""`pit improve --engine ray` with two workers on this machine writes what one process writes, whichever process is
killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from journal_reader import finished_rows

from pitlm.cli.main import main

ROWS, PART = 180, 40
WORDS = ["price", "lamp", "small", "red", "nine", "help", "question", "many"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three files. Some rows have no response, some fail, and one whole part fails."""
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


def run(command: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(command)
    return stop.value.code


@pytest.fixture(scope="module")
def whole(models: Path, answers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    assert run(arguments(models, answers, out)) == 0
    return out


def assert_same(out: Path, whole: Path) -> None:
    assert b"".join(path.read_bytes() for path in sorted(out.glob("*"))) == whole.read_bytes()
    failed = out.with_name("out.failed.jsonl")
    assert failed.read_bytes() == whole.with_name("out.failed.jsonl").read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.failed.jsonl"]


def opened_by(process: psutil.Process, path: Path) -> bool:
    try:
        return process.name().startswith("ray::") and any(file.path == str(path) for file in process.open_files())
    except psutil.Error:
        return False


def kill_a_writer(command: subprocess.Popen[str], journals: Path) -> list[psutil.Process]:
    """Kill a worker in the middle of its part; return the command's processes before that."""
    while command.poll() is None:
        for journal in journals.glob("part-*.jsonl"):
            if 3 < len(finished_rows(journal)) < PART:
                processes = psutil.Process(command.pid).children(recursive=True)
                if writer := next((process for process in processes if opened_by(process, journal)), None):
                    writer.send_signal(signal.SIGKILL)
                    return processes
        time.sleep(0.002)
    raise AssertionError(f"there was no worker to kill: {command.communicate()}")


@pytest.mark.slow  # Ray takes half a minute to start
def test_a_killed_worker_loses_and_repeats_nothing_and_no_process_stays(
    models: Path, answers: Path, whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    options = ["--engine", "ray", "--workers", "2", "--part-rows", str(PART), "--tokens-per-batch", "64"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-m", "pitlm.cli.main", *arguments(models, answers, out, *options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
    ) as command:
        try:
            processes = kill_a_writer(command, tmp_path / "out.partial" / "journals")
            printed, errors = command.communicate()
        finally:
            command.kill()
    assert command.returncode == 0, errors
    assert len(processes) > 3
    assert psutil.wait_procs(processes, timeout=600)[1] == []
    assert_same(out, whole)
    assert [path.name for path in sorted(out.iterdir())] == [f"part-{n:06}.jsonl" for n in (0, 1, 2, 3, 4) if n != 2]
    # Ray prints only that a process died and that it repeats the task.
    lines = [line.strip() for line in printed.splitlines() if "(raylet)" not in line]
    assert lines[0].startswith("improving")
    assert lines[1].startswith(f"{ROWS - 41} answers")
    assert lines[2] == f"41 rows failed; they and the reasons are in {tmp_path / 'out.failed.jsonl'}"
    assert "Traceback" not in errors


def test_an_output_inside_of_the_input_is_refused(
    models: Path, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(models, answers, answers / "out", "--engine", "ray")) == 2
    assert "found a folder inside the source" in capsys.readouterr().err
    assert not (answers / "out").exists()
