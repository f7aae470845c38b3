"""`pit improve --engine ray` with two workers on this machine writes what one process writes, whichever process is
killed. The parts of a job together equal the output of one process, and finished parts are not repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from journal_reader import finished_rows

from pitlm.batch.cluster import TRIES, PartedJob, cut
from pitlm.batch.finished_rows import Journal, NothingImproved
from pitlm.cli.main import main
from pitlm.core.errors import InputError
from pitlm.core.nouns import Round, StopReason, Trace
from pitlm.data.items import Failure, read_items

SETTINGS = {"improver": "a", "temperature": 0.4}
TEN = 10


class Killed(Exception):
    """Stands for a killed process."""


class Job:
    """Finishes items one by one and is killed after a number of them. ``seen`` has the numbers of the items that it
    got."""

    def __init__(self, lives: int = 10**6) -> None:
        self.lives, self.seen = lives, []

    def __call__(self, items):
        for item in items:
            if self.lives == 0:
                raise Killed
            self.lives -= 1
            self.seen.append(item.number)
            if isinstance(item, Failure):
                yield [item]
            elif "long" in item.prompt.text:
                yield [Failure(item.number, item.where, "too long", item.row)]
            else:
                rounds = (Round(f"new {item.number}", 1.0, True, tokens=3),)
                yield [(item, Trace(item.prompt, "old", rounds, StopReason.ROUNDS, 3, 9))]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten rows in two files; rows 1 and 3 to 5 fail. With three rows a part, the whole second part fails."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, numbers in (("a", range(4)), ("b", range(4, TEN))):
        rows = ({"prompt": "long" if n in (1, 3, 4, 5) else f"q{n}", "response": "old"} for n in numbers)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


def one_process(source: Path, output: Path) -> Path:
    with Journal(output, SETTINGS) as journal:
        for finished in Job()(journal.unfinished(read_items(source))):
            journal.add(finished)
        journal.finish()
    return output


def improve_all(source: Path, out: Path, make_job, rows: int = 3, **options) -> int:
    with PartedJob(out, SETTINGS, **options) as job:
        for part in job.unfinished(cut(source, rows)):
            job.improve(part, make_job)
        return job.finish()


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_the_parts_together_are_what_one_process_writes(source, out, tmp_path, rows):
    whole = one_process(source, tmp_path / "whole.jsonl")
    assert improve_all(source, out, Job(), rows) == 4
    assert b"".join(path.read_bytes() for path in sorted(out.iterdir())) == whole.read_bytes()
    assert (out.parent / "out.failed.jsonl").read_bytes() == (tmp_path / "whole.failed.jsonl").read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.failed.jsonl"]


@pytest.mark.parametrize("lives", range(TEN))
def test_killed_anywhere_it_goes_on_and_does_no_row_twice(source, out, tmp_path, lives):
    whole = one_process(source, tmp_path / "whole.jsonl")
    killed, second = Job(lives), Job()
    with pytest.raises(Killed):
        improve_all(source, out, killed)
    assert not out.exists()
    improve_all(source, out, second)
    assert killed.seen + second.seen == list(range(TEN))
    assert b"".join(path.read_bytes() for path in sorted(out.iterdir())) == whole.read_bytes()


def test_parts_may_be_done_in_any_order_by_any_process_and_twice(source, out):
    with PartedJob(out, SETTINGS) as job:
        parts = list(job.unfinished(cut(source, 3)))
        others = [PartedJob(out, SETTINGS) for _ in range(2)]
        for part in (parts[3], parts[0], parts[2]):
            assert others[part.number % 2].improve(part, Job()) == 3 * sum(n not in (1, 3, 4, 5) for n in numbers(part))
        again = Job()
        assert others[0].improve(parts[3], again) == 0
        assert again.seen == []
        with pytest.raises(RuntimeError, match="1 of 4 parts are missing, 1 the first"):
            job.finish()
        others[1].improve(parts[1], Job())
        assert job.finish() == 4


@pytest.mark.parametrize("ends", ["killed", "finished"])
def test_a_part_in_the_hands_of_a_process_that_was_cut_off_waits_for_its_end(source, out, tmp_path, ends):
    """The other process holds the journal of the part until it is killed, or until it has finished the part."""
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from test_cluster import *
part = list(cut(Path({str(source)!r}), 3))[0]
def make_job(items):
    finished = list(Job()(items))
    yield finished[0]
    print("holds", flush=True)
    sys.stdin.readline()
    yield from finished[1:]
PartedJob(Path({str(out)!r}), SETTINGS).improve(part, make_job)
"""
    whole, again = one_process(source, tmp_path / "whole.jsonl"), Job()
    with (
        PartedJob(out, SETTINGS) as job,
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        assert other.stdout.readline() == b"holds\n"
        end = other.kill if ends == "killed" else other.stdin.close
        threading.Timer(1.5, end).start()
        for part in job.unfinished(cut(source, 3)):
            job.improve(part, again)
        job.finish()
    assert again.seen == list(range(1 if ends == "killed" else 3, TEN))
    assert b"".join(path.read_bytes() for path in sorted(out.iterdir())) == whole.read_bytes()


def numbers(part):
    return [item.number for item in part.items]


def test_another_job_is_refused_by_name_and_nothing_is_lost(source, out):
    with pytest.raises(Killed):
        improve_all(source, out, Job(5))
    with pytest.raises(InputError, match=r"temperature: found 0\.4, now 0\.7"):
        PartedJob(out, {**SETTINGS, "temperature": 0.7}).__enter__()
    with PartedJob(out, SETTINGS) as job, pytest.raises(InputError, match="another process is writing it"):
        PartedJob(out, SETTINGS).__enter__()
    assert job.finished() == {0}
    fresh = Job()
    improve_all(source, out, fresh, fresh=True)
    assert fresh.seen == list(range(TEN))


def test_an_output_that_is_there_is_replaced_when_all_is_done(source, out):
    improve_all(source, out, Job(), rows=1)
    with pytest.raises(Killed):
        improve_all(source, out, Job(5), fresh=True)
    assert len(list(out.iterdir())) == 6
    improve_all(source, out, Job())
    assert sorted(path.name for path in out.iterdir()) == [f"part-00000{n}.jsonl" for n in (0, 2, 3)]
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.failed.jsonl"]


def test_where_every_row_failed_the_first_reason_is_the_message(tmp_path, out):
    (tmp_path / "in.jsonl").write_text('{"prompt": "long", "response": "old"}\n' * 5)
    with pytest.raises(NothingImproved, match=r"in.jsonl:1: too long \(all 5 rows failed: .*out.failed.jsonl\)"):
        improve_all(tmp_path / "in.jsonl", out, Job())
    assert [path.name for path in out.parent.iterdir()] == ["out.failed.jsonl"]


def test_a_part_that_kills_whoever_takes_it_ends_the_job(source, out):
    for _ in range(2):  # the same command goes on, with the full number of tries
        with PartedJob(out, SETTINGS) as job:
            part = next(cut(source, 3))
            for _ in range(TRIES):
                with pytest.raises(Killed):
                    job.improve(part, Job(0))
            with pytest.raises(InputError, match=r"a.jsonl:1 to .*a.jsonl:3: 10 processes died over these rows"):
                job.improve(part, Job())


def test_a_job_that_did_nothing_leaves_nothing(out):
    with pytest.raises(Killed), PartedJob(out, SETTINGS):
        raise Killed
    assert list(out.parent.iterdir()) == []


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
