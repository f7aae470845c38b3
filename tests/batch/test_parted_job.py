"""A job in parts: the parts together equal the output of one process, and finished parts are not repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pitlm.batch.finished_rows import Journal, NothingImproved
from pitlm.batch.parted_job import TRIES, PartedJob, cut
from pitlm.core.errors import InputError
from pitlm.core.nouns import Round, StopReason, Trace
from pitlm.data.items import Failure, read_items

SETTINGS = {"improver": "a", "temperature": 0.4}
ROWS = 10


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
    for name, numbers in (("a", range(4)), ("b", range(4, ROWS))):
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
        parts = list(cut(source, rows))
        for part in parts:
            if part.number not in job.finished():
                job.improve(part, make_job)
        return job.finish(len(parts))


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_the_parts_together_are_what_one_process_writes(source, out, tmp_path, rows):
    whole = one_process(source, tmp_path / "whole.jsonl")
    assert improve_all(source, out, Job(), rows) == 4
    assert b"".join(path.read_bytes() for path in sorted(out.iterdir())) == whole.read_bytes()
    assert (out.parent / "out.failed.jsonl").read_bytes() == (tmp_path / "whole.failed.jsonl").read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.failed.jsonl"]


@pytest.mark.parametrize("lives", range(ROWS))
def test_killed_anywhere_it_goes_on_and_does_no_row_twice(source, out, tmp_path, lives):
    whole = one_process(source, tmp_path / "whole.jsonl")
    killed, second = Job(lives), Job()
    with pytest.raises(Killed):
        improve_all(source, out, killed)
    assert not out.exists()
    improve_all(source, out, second)
    assert killed.seen + second.seen == list(range(ROWS))
    assert b"".join(path.read_bytes() for path in sorted(out.iterdir())) == whole.read_bytes()


def test_parts_may_be_done_in_any_order_by_any_process_and_twice(source, out):
    with PartedJob(out, SETTINGS) as job:
        parts = list(cut(source, 3))
        others = [PartedJob(out, SETTINGS) for _ in range(2)]
        for part in (parts[3], parts[0], parts[2]):
            assert others[part.number % 2].improve(part, Job()) == 3 * sum(n not in (1, 3, 4, 5) for n in numbers(part))
        again = Job()
        assert others[0].improve(parts[3], again) == 0
        assert again.seen == []
        with pytest.raises(RuntimeError, match="1 of 4 parts are missing, 1 the first"):
            job.finish(4)
        others[1].improve(parts[1], Job())
        assert job.finish(4) == 4


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
    assert fresh.seen == list(range(ROWS))


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
