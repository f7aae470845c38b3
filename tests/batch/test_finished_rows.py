"""The journal of a batch job: finished rows stay, half-written rows go, and no rows are mixed up."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import tracemalloc
from pathlib import Path

import pytest

from pitlm.batch.finished_rows import Journal
from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Round, StopReason, Trace
from pitlm.data.items import Failure, Item

SETTINGS = {"improver": "a", "temperature": 0.4}


def item(number: int, **row) -> Item:
    return Item(number, Prompt.of(f"q{number}"), "old", {"prompt": f"q{number}", **row}, f"in.jsonl:{number + 1}")


def done(number: int, **row):
    one = item(number, **row)
    rounds = (Round(f"new {number}", 0.1 + number, True, tokens=3),)
    return one, Trace(one.prompt, "old", rounds, StopReason.ROUNDS, 3, 9)


def failed(number: int) -> Failure:
    return Failure(number, f"in.jsonl:{number + 1}", "too long", {"prompt": f"q{number}"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out.jsonl"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def todo(journal: Journal, *items: Item) -> list[int]:
    """Return the numbers of the items that the journal lacks."""
    return [one.number for one in journal.unfinished(items)]


def finish(journal: Journal, count: int) -> int:
    """Finish a job with ``count`` input rows, all done."""
    assert todo(journal, *map(item, range(count))) == []
    return journal.finish()


def test_rows_come_out_in_the_order_of_the_input_and_the_journal_goes(out):
    with Journal(out, SETTINGS) as journal:
        assert journal.add([done(2), failed(1)]) == 3
        assert not out.exists()
        assert journal.add([done(0), done(3)]) == 6
        assert len(journal) == 4
        assert finish(journal, 4) == 1
    assert [row["pit"]["final"] for row in rows(out)] == ["new 0", "new 2", "new 3"]
    made = {k: v for k, v in done(0)[1].as_dict().items() if k != "prompt"}
    assert rows(out)[0] == {"prompt": "q0", "pit": made}
    assert rows(out.parent / "out.failed.jsonl") == [
        {"where": "in.jsonl:2", "reason": "too long", "row": {"prompt": "q1"}}
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.failed.jsonl", "out.jsonl"]


def killed(journal: Journal, elsewhere: Path) -> Path:
    """Copy to another folder what a process killed now would leave; return the output there."""
    elsewhere.mkdir()
    for path in journal.path.parent.glob(journal.path.name + "*"):
        shutil.copy(path, elsewhere)
    return elsewhere / journal.output.name


def log_of(out: Path) -> Path:
    """The file that the database has written to last."""
    return out.with_name(out.name + ".partial-wal")


@pytest.mark.parametrize("cut", [1, 7, 60, 500])
def test_a_half_written_row_is_to_do_again_and_those_before_it_stay(out, tmp_path, cut):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0), done(1)])
        journal.add([done(2)])
        left = killed(journal, tmp_path / "killed")
    log_of(left).write_bytes(log_of(left).read_bytes()[:-cut])
    with Journal(left, SETTINGS) as journal:
        assert todo(journal, *map(item, range(4))) == [2, 3]
        assert len(journal) == 2
        journal.add([done(2)])
    with Journal(left, SETTINGS) as journal:
        finish(journal, 3)
    assert [row["pit"]["final"] for row in rows(left)] == ["new 0", "new 1", "new 2"]
    assert [path.name for path in left.parent.iterdir()] == ["out.jsonl"]


def test_killed_without_warning_every_finished_row_stays(out, tmp_path):
    with Journal(out, SETTINGS) as journal:
        for number in range(3):
            journal.add([done(number)])
            with Journal(killed(journal, tmp_path / f"after {number}"), SETTINGS) as other:
                assert todo(other, *map(item, range(4))) == list(range(number + 1, 4))


def test_a_power_cut_that_left_zeros_loses_nothing_else(out, tmp_path):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
        left = killed(journal, tmp_path / "killed")
    with log_of(left).open("ab") as file:
        file.write(b"\0" * 50 + b"\n" + b"\0" * 9)
    with Journal(left, SETTINGS) as journal:
        assert todo(journal, item(0), item(1)) == [1]


def test_a_job_with_other_settings_is_refused_by_name_and_nothing_is_lost(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
    before = journal.path.read_bytes()
    with pytest.raises(
        InputError, match=r"temperature: found 0\.4, now 0\.7\); give the same, or another -o, or --force"
    ):
        Journal(out, {**SETTINGS, "temperature": 0.7}).__enter__()
    assert journal.path.read_bytes() == before
    with Journal(out, {**SETTINGS, "temperature": 0.7}, fresh=True) as fresh:
        assert todo(fresh, item(0)) == [0]
        assert len(fresh) == 0


def test_another_row_in_the_place_of_a_finished_one_is_refused(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
        assert todo(journal, item(0)) == []
        with pytest.raises(InputError, match=r"in\.jsonl:1: found another row"):
            todo(journal, item(0, more=1))
        journal.add([done(1), done(2)])
    with Journal(out, SETTINGS) as journal, pytest.raises(InputError, match="has 3 rows, but the input only 2"):
        finish(journal, 2)
    assert journal.path.exists()
    assert not out.exists()


def test_two_processes_do_not_write_one_file(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
        with pytest.raises(InputError, match="another process is writing it"):
            Journal(out, SETTINGS).__enter__()
        assert todo(journal, item(0)) == []


@pytest.mark.parametrize("content", [b"no journal\n" * 99, b"SQLite format 3\0" + b"?" * 5000])
def test_a_file_that_is_no_journal_is_named_and_left_alone(out, content):
    path = out.with_name("out.jsonl.partial")
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"out\.jsonl\.partial: found .*, expected the journal of a job"):
        Journal(out, SETTINGS).__enter__()
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_kept(out):
    path = out.with_name("out.jsonl.partial")
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(InputError, match="found another program's database, expected the journal of a job"):
        Journal(out, SETTINGS).__enter__()
    assert path.read_bytes() == before


def test_a_job_that_did_nothing_leaves_nothing(out):
    with pytest.raises(RuntimeError), Journal(out, SETTINGS):
        raise RuntimeError
    assert list(out.parent.iterdir()) == []


def test_where_every_row_failed_the_first_reason_is_the_message(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([failed(1), failed(0)])
        with pytest.raises(InputError, match=r"in.jsonl:1: too long \(all 2 rows failed: .*out.failed.jsonl\)"):
            finish(journal, 2)
    assert [path.name for path in out.parent.iterdir()] == ["out.failed.jsonl"]


def test_failures_of_an_earlier_job_do_not_stay(out):
    out.parent.mkdir()
    (out.parent / "out.failed.jsonl").write_text("{}\n")
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
        finish(journal, 1)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_odd_fields_survive(out):
    odd = {"half": "\ud83d", "sep": "\u2028", "own": {"x": [None, 1e300]}, "zero": "\0"}
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0, **odd)])
    with Journal(out, SETTINGS) as journal:
        assert todo(journal, item(0, **odd)) == []
        journal.finish()
    [row] = [json.loads(line) for line in out.read_bytes().split(b"\n") if line]
    assert {name: row[name] for name in odd} == odd


def test_memory_stays_flat_however_many_rows(out):
    """A row takes no memory while the job runs, and none when the output is written."""
    with Journal(out, SETTINGS) as journal:
        journal.add([done(n) for n in range(100)])
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for first in range(100, 20_000, 100):
            journal.add([done(n) for n in range(first, first + 100)])
        assert todo(journal, *map(item, range(100, 200))) == []
        tracemalloc.reset_peak()
        for _ in journal.unfinished(map(item, range(20_000 - 100))):
            raise AssertionError
        journal.finish()
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert len(rows(out)) == 20_000
    assert peak < 1_000_000  # bytes; the output has four times as many


def test_a_number_that_json_lacks_becomes_null(out):
    row = {"score": math.nan, "half": "\ud800", "list": [1.5, math.inf]}
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0, **row)])
        assert todo(journal, item(0, **row)) == []
        journal.finish()
    written = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert (written["score"], written["half"], written["list"]) == (None, "\ud800", [1.5, None])
