"""The journal of a batch job: what was finished stays, what was half written goes, and nothing is mixed up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pitlm.batch.finished_rows import Journal
from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Round, StopReason, Trace
from pitlm.data.items import Failure, Item, count_rows, read_items

SETTINGS = {"improver": "a", "temperature": 0.4}


def item(number: int, **row) -> Item:
    return Item(number, Prompt.of(f"q{number}"), "old", {"prompt": f"q{number}", **row}, f"in.jsonl:{number + 1}")


def done(number: int, **row):
    one = item(number, **row)
    rounds = (Round(f"new {number}", 0.1 + number, True, tokens=3),)
    return one, Trace(one.prompt, "old", rounds, StopReason.ROUNDS, 3, 9)


def failed(number: int) -> Failure:
    return Failure(number, f"in.jsonl:{number + 1}", "too long", {"prompt": "q"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out.jsonl"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_come_out_in_the_order_of_the_input_and_the_journal_goes(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(2), failed(1)])
        assert not out.exists()
        journal.add([done(0), done(3)])
        journal.finish(4)
    assert [row["final"] for row in rows(out)] == ["new 0", "new 2", "new 3"]
    assert rows(out)[0] == {"prompt": "q0", **{k: v for k, v in done(0)[1].as_dict().items() if k != "prompt"}}
    assert rows(out.parent / "out.failed.jsonl") == [
        {"where": "in.jsonl:2", "reason": "too long", "row": {"prompt": "q"}}
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.failed.jsonl", "out.jsonl"]


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_half_written_line_is_cut_and_its_row_is_to_do_again(out, cut):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0), done(1)])
        whole = journal.path.read_bytes()
        journal.add([done(2)])
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    with Journal(out, SETTINGS) as journal:
        assert [item(n) in journal for n in range(4)] == [True, True, False, False]
        assert journal.path.read_bytes() == whole
        journal.add([done(2)])
        journal.finish(3)
    assert [row["final"] for row in rows(out)] == ["new 0", "new 1", "new 2"]


def test_a_power_cut_that_left_zeros_is_cut_too(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
    with journal.path.open("ab") as file:
        file.write(b"\0" * 50 + b"\n" + b"\0" * 9)
    with Journal(out, SETTINGS) as journal:
        assert [item(n) in journal for n in range(2)] == [True, False]


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
        assert item(0) not in fresh


def test_another_row_in_the_place_of_a_finished_one_is_refused(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
        assert item(0) in journal
        with pytest.raises(InputError, match=r"in\.jsonl:1: found another row"):
            item(0, more=1) in journal  # noqa: B015
        journal.add([done(1), done(2)])
        with pytest.raises(InputError, match="has 3 rows, but the input only 2"):
            journal.finish(2)
    assert journal.path.exists()


def test_two_processes_do_not_write_one_file(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
        with pytest.raises(InputError, match="another process is writing it"):
            Journal(out, SETTINGS).__enter__()
        assert item(0) in journal


def test_a_job_that_did_nothing_leaves_nothing(out):
    with pytest.raises(RuntimeError), Journal(out, SETTINGS):
        raise RuntimeError
    assert list(out.parent.iterdir()) == []


def test_where_every_row_failed_the_first_reason_is_the_message(out):
    with Journal(out, SETTINGS) as journal:
        journal.add([failed(0), failed(1)])
        with pytest.raises(InputError, match=r"in.jsonl:1: too long \(all 2 rows failed: .*out.failed.jsonl\)"):
            journal.finish(2)
    assert [path.name for path in out.parent.iterdir()] == ["out.failed.jsonl"]


def test_failures_of_an_earlier_job_do_not_stay(out):
    out.parent.mkdir()
    (out.parent / "out.failed.jsonl").write_text("{}\n")
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0)])
        journal.finish(1)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_odd_fields_survive(out):
    odd = {"half": "\ud83d", "sep": "\u2028", "own": {"x": [None, 1e300]}}
    with Journal(out, SETTINGS) as journal:
        journal.add([done(0, **odd)])
    with Journal(out, SETTINGS) as journal:
        assert item(0, **odd) in journal
        journal.finish(1)
    [row] = [json.loads(line) for line in out.read_bytes().split(b"\n") if line]
    assert {name: row[name] for name in odd} == odd


def test_rows_of_every_shape_are_read_one_by_one(tmp_path):
    path = tmp_path / "in.jsonl"
    given = [
        {"prompt": "a", "response": "b"},
        {"messages": [{"role": "user", "content": "a"}]},
        {"instruction": "a", "output": "b", "generator": "m"},
        {"prompt": "a", "messages": "left alone"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in given) + "\n{broken\n")
    stream = read_items(path)
    assert next(stream).number == 0  # before the broken line is met
    items = [next(stream) for _ in range(3)]
    assert [(one.prompt.text, one.response) for one in items] == [("a", None), ("a", "b"), ("a", None)]
    [bad] = stream
    assert (bad.number, bad.where, bad.row) == (4, f"{path}:6", "{broken")
    assert count_rows(path) == 5
    trace = Trace(items[1].prompt, "b", (Round("c", 1.0, True),), StopReason.ROUNDS)
    assert items[1].improved(trace)["output"] == "c"  # what AlpacaEval reads
    assert "prompt" not in items[1].improved(trace)
    path.write_text("")
    with pytest.raises(InputError, match="found no rows"):
        list(read_items(path))
