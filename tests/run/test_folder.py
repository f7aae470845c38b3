"""A run folder knows what is done, what is stale and what was interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pitlm.core.errors import BudgetSpent, InputError
from pitlm.run import folder as runs
from pitlm.run.folder import RunFolder, Stage, Status, fingerprints, is_current, stage_record, stage_result

#      a
#     / \
#    b   c
#     \ /
#      d
NEEDS = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


class Bench:
    """The diamond above; remembers messages and the stages that worked."""

    def __init__(self, root: Path, **settings: Mapping[str, Any]) -> None:
        self.root = root
        self.settings: dict[str, Mapping[str, Any]] = {name: {"n": 1} for name in NEEDS} | settings
        self.worked: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.fail_in: str | None = None
        self.error: Exception = RuntimeError("out of luck")

    def stages(self) -> list[Stage]:
        return [Stage(name, self.settings[name], needs) for name, needs in NEEDS.items()]

    def work(self, stage: Stage, folder: Path) -> dict[str, Any]:
        name = stage.name
        (folder / "half.txt").write_text(name)
        if name == self.fail_in:
            raise self.error
        (folder / "whole.txt").write_text(str(self.settings[name]))
        self.worked.append(name)
        return {"made": name}

    def run(self, *, update: bool = False) -> list[str]:
        """Execute the run; return the stages that worked."""
        self.worked, self.told = [], []
        listener = lambda name, event, seconds: self.told.append((name, event))  # noqa: E731
        folder = RunFolder(self.root)
        folder.execute(self.stages(), self.work, recipe={"all": self.settings}, update=update, listener=listener)
        return self.worked


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run")


def contents(root: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file with its content and time of change."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def stale(before: Bench, after: Bench) -> set[str]:
    old, new = fingerprints(before.stages()), fingerprints(after.stages())
    return {name for name in NEEDS if old[name] != new[name]}


@pytest.mark.parametrize(
    ("changed", "dependents"),
    [("a", {"a", "b", "c", "d"}), ("b", {"b", "d"}), ("c", {"c", "d"}), ("d", {"d"})],
)
def test_a_change_makes_exactly_the_dependents_stale(bench: Bench, changed: str, dependents: set[str]) -> None:
    assert stale(bench, Bench(bench.root, **{changed: {"n": 2}})) == dependents


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"x": 1, "y": {"p": 1, "q": 2}}, {"y": {"q": 2, "p": 1}, "x": 1}, True),
        ({"x": [1, 2]}, {"x": [2, 1]}, False),
        ({"x": 1}, {"x": "1"}, False),
        ({"x": None}, {}, False),
        ({"x": 0.1}, {"x": 0.1 + 1e-12}, False),
    ],
)
def test_settings_count_by_value_not_by_order_of_keys(
    bench: Bench, first: dict[str, Any], second: dict[str, Any], same: bool
) -> None:
    assert (stale(Bench(bench.root, a=first), Bench(bench.root, a=second)) == set()) is same


def test_format_of_the_files_is_part_of_the_fingerprint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fingerprints(bench.stages())
    monkeypatch.setattr(runs, "FORMAT", runs.FORMAT + 1)
    assert all(old[name] != new for name, new in fingerprints(bench.stages()).items())


def test_stages_run_in_order_and_are_skipped_the_second_time(bench: Bench) -> None:
    assert bench.run() == ["a", "b", "c", "d"]
    assert bench.told == [(name, event) for name in NEEDS for event in ("start", "done")]
    assert stage_result(bench.root, "b") == {"made": "b"}
    before = contents(bench.root / "b")
    assert bench.run() == []
    assert bench.told == [(name, "skip") for name in NEEDS]
    assert contents(bench.root / "b") == before


def test_memory_stands_beside_the_result_which_it_is_no_part_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "work", lambda stage, folder: {"made": stage.name, "memory": 7})
    bench.run()
    assert (stage_record(bench.root, "c") or {})["memory"] == 7
    assert stage_result(bench.root, "c") == {"made": "c"}


def test_an_exception_leaves_the_stage_started_and_the_next_time_it_goes_on(bench: Bench) -> None:
    bench.fail_in = "b"
    with pytest.raises(RuntimeError, match="out of luck"):
        bench.run()
    record = stage_record(bench.root, "b")
    assert record is not None
    assert record["status"] == "started"
    assert (bench.root / "b" / "half.txt").exists()
    with pytest.raises(InputError, match="stage 'b' is not done"):
        stage_result(bench.root, "b")
    bench.fail_in = None
    assert bench.run() == ["b", "c", "d"]
    assert bench.told[:2] == [("a", "skip"), ("b", "resume")]


def test_input_at_fault_leaves_no_stage_behind(bench: Bench) -> None:
    changed = Bench(bench.root, c={"n": 2})
    changed.fail_in, changed.error = "c", InputError("pairs.jsonl:3: found nothing")
    with pytest.raises(InputError, match=r"pairs\.jsonl:3"):
        changed.run()
    assert not (bench.root / "c").exists()
    # The repaired input has another fingerprint, so the stage runs.
    assert Bench(bench.root, c={"n": 3}).run() == ["c", "d"]


def test_input_at_fault_does_not_cost_the_stage_that_it_was_to_replace(bench: Bench) -> None:
    bench.run()
    before = contents(bench.root)
    changed = Bench(bench.root, c={"n": 2})
    changed.fail_in, changed.error = "c", InputError("pairs.jsonl:3: found nothing")
    with pytest.raises(InputError, match=r"pairs\.jsonl:3"):
        changed.run(update=True)
    assert {**contents(bench.root), "recipe.json": None} == {**before, "recipe.json": None}
    assert bench.run() == []
    changed.fail_in = None
    assert changed.run(update=True) == ["c", "d"]
    assert sorted(path.name for path in bench.root.iterdir() if path.is_dir()) == ["a", "b", "c", "d"]


def test_input_at_fault_leaves_the_recipe_of_what_the_folder_holds(bench: Bench) -> None:
    bench.run()
    recipe = (bench.root / "recipe.json").read_bytes()
    after = Bench(bench.root, b={"n": 2}, d={"n": 2})
    after.fail_in, after.error = "b", InputError("pairs.jsonl:3: found nothing")
    with pytest.raises(InputError):
        after.run(update=True)
    assert (bench.root / "recipe.json").read_bytes() == recipe
    after.fail_in = "d"  # b already has the new recipe
    with pytest.raises(InputError):
        after.run(update=True)
    assert (bench.root / "recipe.json").read_bytes() != recipe


def test_input_at_fault_in_a_new_run_leaves_no_folder_behind(bench: Bench) -> None:
    bench.fail_in, bench.error = "a", InputError("pairs.jsonl:3: found nothing")
    with pytest.raises(InputError):
        bench.run()
    assert not bench.root.exists()
    bench.root.mkdir()
    with pytest.raises(InputError):
        bench.run()
    assert list(bench.root.iterdir()) == []  # the folder belonged to the user


def test_input_at_fault_keeps_what_an_interrupted_attempt_left(bench: Bench) -> None:
    bench.fail_in = "c"
    with pytest.raises(RuntimeError):
        bench.run()
    bench.error = InputError("the base model has gone")
    with pytest.raises(InputError):
        bench.run()
    assert (bench.root / "c" / "half.txt").exists()
    bench.fail_in = None
    assert bench.run() == ["c", "d"]


def test_work_that_stopped_early_keeps_what_it_made_and_goes_on(bench: Bench) -> None:
    bench.fail_in, bench.error = "c", BudgetSpent("the cost limit is reached")
    with pytest.raises(BudgetSpent):
        bench.run()
    assert (bench.root / "c" / "half.txt").exists()
    bench.fail_in = None
    assert bench.run() == ["c", "d"]
    assert ("c", "resume") in bench.told
    # The same where the stage replaces another one.
    changed = Bench(bench.root, c={"n": 2})
    changed.fail_in, changed.error = "c", BudgetSpent("the cost limit is reached")
    with pytest.raises(BudgetSpent):
        changed.run(update=True)
    changed.fail_in = None
    assert changed.run(update=True) == ["c", "d"]
    assert ("c", "resume") in changed.told


def test_refusal_names_the_setting_and_touches_nothing(bench: Bench) -> None:
    bench.run()
    before = contents(bench.root)
    changed = Bench(bench.root, b={"n": 1, "train": {"rate": 0.5}})
    with pytest.raises(InputError) as refused:
        changed.run()
    message = str(refused.value)
    assert str(bench.root) in message
    assert "train: found None, now {'rate': 0.5}" in message
    assert "b" in message
    assert "--update" in message
    assert "--out" in message
    assert contents(bench.root) == before
    assert bench.run() == []  # with the old settings the run is still finished


def test_refusal_names_a_change_once_however_many_stages_share_it(bench: Bench) -> None:
    bench.run()
    with pytest.raises(InputError) as refused:
        Bench(bench.root, **{name: {"n": 2} for name in NEEDS}).run()
    assert str(refused.value).count("n: found 1, now 2") == 1


def test_refusal_lists_at_most_eight_changes_and_counts_the_rest(bench: Bench) -> None:
    many = Bench(bench.root, a={f"k{n}": 0 for n in range(12)})
    many.run()
    with pytest.raises(InputError) as refused:
        Bench(bench.root, a={f"k{n}": 1 for n in range(12)}).run()
    assert str(refused.value).count("found 0, now 1") == 8
    assert "4 more" in str(refused.value)


def test_update_redoes_only_what_is_stale_and_from_an_empty_folder(bench: Bench) -> None:
    bench.run()
    (bench.root / "b" / "left over.txt").write_text("old")
    before = contents(bench.root / "a") | contents(bench.root / "c")
    assert Bench(bench.root, b={"n": 2}).run(update=True) == ["b", "d"]
    assert not (bench.root / "b" / "left over.txt").exists()
    assert contents(bench.root / "a") | contents(bench.root / "c") == before
    assert json.loads((bench.root / "recipe.json").read_text())["all"]["b"] == {"n": 2}


def test_what_was_made_from_something_else_is_done_and_not_current(bench: Bench) -> None:
    bench.run()
    assert all(is_current(bench.root, name) for name in NEEDS)
    after = Bench(bench.root, b={"n": 2})
    after.fail_in = "d"
    with pytest.raises(RuntimeError, match="out of luck"):
        after.run(update=True)
    record = bench.root / "d" / "stage.json"
    record.write_text(record.read_text().replace("started", "done"))
    assert [name for name in NEEDS if is_current(bench.root, name)] == ["a", "b", "c", "d"]
    assert not is_current(bench.root, "e")
    other = bench.root / "b" / "stage.json"
    other.write_text(other.read_text().replace(json.loads(other.read_text())["fingerprint"], "0" * 16))
    assert [name for name in NEEDS if is_current(bench.root, name)] == ["a", "c"]


def test_the_seconds_of_a_stage_count_its_interrupted_attempts_up_to_their_last_files(bench: Bench) -> None:
    bench.fail_in = "b"
    for _ in range(2):
        with pytest.raises(RuntimeError):
            bench.run()
        began = (bench.root / "b" / "stage.json").stat().st_mtime
        os.utime(bench.root / "b" / "half.txt", (began + 1000, began + 1000))
    bench.fail_in = None
    assert bench.run() == ["b", "c", "d"]
    seconds = {name: stage_record(bench.root, name)["seconds"] for name in NEEDS}
    assert seconds["b"] >= 2000
    assert seconds["b"] - seconds["c"] < 3000  # each attempt is counted once


def test_an_interrupted_stage_with_other_settings_is_not_gone_on_with(bench: Bench) -> None:
    bench.fail_in = "b"
    with pytest.raises(RuntimeError):
        bench.run()
    changed = Bench(bench.root, b={"n": 2})
    with pytest.raises(InputError, match="n: found 1, now 2"):
        changed.run()
    assert (bench.root / "b" / "half.txt").exists()
    assert changed.run(update=True) == ["b", "c", "d"]
    assert changed.told[:2] == [("a", "skip"), ("b", "start")]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
def test_a_folder_with_other_files_is_refused_and_kept(bench: Bench, name: str) -> None:
    bench.root.mkdir()
    (bench.root / name).write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        bench.run()
    assert [path.name for path in bench.root.iterdir()] == [name]


def test_a_file_in_place_of_the_folder_is_refused(bench: Bench) -> None:
    bench.root.write_text("mine")
    with pytest.raises(InputError, match="expected a folder"):
        bench.run()
    assert bench.root.read_text() == "mine"


def test_an_empty_folder_is_taken(bench: Bench) -> None:
    bench.root.mkdir()
    assert bench.run() == ["a", "b", "c", "d"]


def test_a_second_process_on_one_run_is_refused_until_the_first_ends(bench: Bench) -> None:
    bench.run()
    script = f"""
import pathlib, sys
from pitlm.run.folder import RunFolder, stage_record, stage_result
with RunFolder(pathlib.Path({str(bench.root)!r})).locked():
    print("locked", flush=True); sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="another process is working on this run"):
            bench.run()
        other.kill()  # the lock ends with the process, however it dies
    assert bench.run() == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"status": "done"}', '{"status": "asleep", "fingerprint": "x"}', "\0" * 8, "\ud800"],
)
def test_a_broken_record_is_the_users_to_see(bench: Bench, text: str) -> None:
    bench.run()
    path = bench.root / "b" / "stage.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError) as broken:
        bench.run()
    assert str(path) in str(broken.value)
    assert "cannot load a record of a stage (delete the stage's folder, then `pit run` makes the stage again)" in str(
        broken.value
    )


def test_a_removed_stage_folder_is_made_again(bench: Bench) -> None:
    bench.run()
    (bench.root / "c" / "stage.json").unlink()
    assert bench.run() == ["c"]


def test_status_of_each_kind(bench: Bench) -> None:
    bench.fail_in = "c"
    with pytest.raises(RuntimeError):
        bench.run()
    stages = {stage.name: stage for stage in bench.stages()}
    prints = fingerprints(bench.stages())
    folder = RunFolder(bench.root)
    found = {name: folder.status(stage, prints[name]) for name, stage in stages.items()}
    assert found == {"a": Status.DONE, "b": Status.DONE, "c": Status.STARTED, "d": Status.MISSING}
    assert folder.status(stages["a"], "other") is Status.STALE


def test_what_killed_processes_had_begun_to_write_is_removed(bench: Bench) -> None:
    bench.run()
    left = [bench.root / ".recipe.json.1f.tmp", bench.root / "b" / ".stage.json.2e.tmp"]
    for path in left:
        path.write_text("{")
    (bench.root / "c" / ".model.3d.tmp" / "deep").mkdir(parents=True)
    kept = {path for path in bench.root.rglob("*") if ".tmp" not in str(path)}
    assert bench.run() == []
    assert set(bench.root.rglob("*")) == kept


def test_a_list_in_the_settings_equals_the_same_tuple(tmp_path: Path) -> None:
    Bench(tmp_path, b={"n": 1, "folds": (1, 1, 1)}).run()
    with pytest.raises(InputError) as refused:
        Bench(tmp_path, b={"n": 2, "folds": (1, 1, 1)}).run()
    assert "n: found 1, now 2" in str(refused.value)
    assert "folds" not in str(refused.value)


@pytest.mark.parametrize("damage", [{"seconds": "x"}, {"seconds": None}, {"memory": "x"}, {"memory": [1]}])
def test_a_record_whose_numbers_are_none_is_named(bench: Bench, damage: dict[str, Any]) -> None:
    bench.run()
    file = bench.root / "a" / "stage.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))
    with pytest.raises(InputError, match=r"a/stage\.json: cannot load a record of a stage"):
        stage_record(bench.root, "a")
