"""`pit run`: settings, recipes, folders and disks at fault; whatever is wrong, one message and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from command_line import GOOD, RECIPE, Cli, assert_one_message, deny, lines

from pitlm.cli.main import main

SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "unknown section": (["curiculum.rl.beta=1"], ["unknown key 'curiculum'", "did you mean 'curriculum'?"]),
    "unknown key": (["curriculum.rl.betta=1"], ["unknown key 'curriculum.rl.betta'", "did you mean 'beta'?"]),
    "unknown key, nothing near": (
        ["loop.qqqq=1"],
        ["unknown key 'loop.qqqq'", "rounds, proposals, margin, temperature"],
    ),
    "unknown key in a new section": (["peft.rank=4"], ["unknown key 'peft.rank'", "expected one of r,"]),
    "unknown key in init": (["model.init.layer=4"], ["unknown key 'model.init.layer'", "did you mean 'layers'?"]),
    "negative beta": (["curriculum.rl.beta=-0.1"], ["'curriculum.rl.beta': found -0.1", "greater than or equal to 0"]),
    "beta not a number": (["curriculum.rl.beta=.nan"], ["'curriculum.rl.beta': found nan"]),
    "infinite learning rate": (["gap.learning_rate=.inf"], ["'gap.learning_rate': found inf"]),
    "beta in words": (["curriculum.rl.beta=much"], ["'curriculum.rl.beta': found 'much'"]),
    "zero rounds": (["loop.rounds=0"], ["'loop.rounds': found 0", "greater than 0"]),
    "half a round": (["loop.rounds=1.5"], ["'loop.rounds': found 1.5"]),
    "group that does not divide": (["curriculum.rl.group=3"], ["curriculum.rl", "multiple of group 3"]),
    "group of one": (["curriculum.rl.group=1"], ["'curriculum.rl.group': found 1"]),
    "test share of one": (["data.test=1.0"], ["'data.test': found 1.0", "less than 1"]),
    "test share above one": (["data.test=3"], ["'data.test': found 3"]),
    "shares that leave nothing": (
        ["data.test=0.6", "data.validation=0.5"],
        ["'data': found a section: test 0.6 + validation 0.5", "below 1"],
    ),
    "no learning rate": (["gap.learning_rate=0"], ["'gap.learning_rate': found 0"]),
    "heads of odd width": (["model.init.head_dim=7"], ["model.init.head_dim", "found 7"]),
    "unknown schedule": (["gap.schedule=quadratic"], ["'gap.schedule': found 'quadratic'", "'linear', 'cosine'"]),
    "unknown source of references": (["curriculum.stages=[data, human]"], ["curriculum.stages", "'human'"]),
    "improver first": (["curriculum.stages=[improver]"], ["the first stage cannot take references from the improver"]),
    "no stages": (["curriculum.stages=[]"], ["curriculum.stages"]),
    "steps for other stages": (["curriculum.steps=[5]"], ["'steps' has 1 entries for 2 stages"]),
    "steps that would not count": (
        ["curriculum.steps=[5, 6]", "curriculum.rl.max_steps=4"],
        ["--set curriculum.rl.max_steps: found curriculum.steps [5, 6] in", "would win", "or null"],
    ),
    "base and init": (["model.base=somewhere"], ["either 'base'", "or 'init'"]),
    "neither base nor init": (["model.init=null"], ["either 'base'", "or 'init'"]),
    "negative seed": (["seed=-1"], ["'seed': found -1"]),
    "a list for a section": (["loop=[1]"], ["'loop': found [1]"]),
    "a key below a value": (["seed.x=1"], ["'seed': found a section"]),
    "a key below a value that is set": (["name.x=1"], ["--set name.x: 'name' is not a section"]),
    "a key below nothing": (["=3"], ["--set: found '=3', expected KEY=VALUE"]),
    "no value": (["loop.rounds"], ["--set: found 'loop.rounds', expected KEY=VALUE"]),
    "an empty value": (["loop.rounds="], ["'loop.rounds': found None"]),
    "broken value": (["loop.rounds=[1"], ["--set loop.rounds: cannot read the value '[1'"]),
    "dots only": (["..=1"], ["unknown key"]),
    "an unknown tracker": (["report_to=[nothing-known]"], ["report_to", "nothing-known"]),
    "a name with a slash": (["name=../x"], ["'name': found '../x'"]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_at_fault_are_named(cli: Cli, name: str) -> None:
    overrides, wanted = SETTINGS[name]
    source = cli.source("pairs.jsonl", lines(*GOOD))
    code, message = cli.run_data(source, *(part for item in overrides for part in ("--set", item)))
    assert code == 2, message
    assert_one_message(message)
    for part in wanted:
        assert part in message
    assert not cli.out.exists()


RECIPES: dict[str, tuple[bytes, list[str]]] = {
    "no YAML": (b"data: [1, 2\nmodel: }", ["found broken YAML", "expected a recipe"]),
    "a list": (b"- data\n- model\n", ["found list, expected a mapping of sections"]),
    "a word": (b"hello", ["expected a mapping of sections"]),
    "nothing": (b"", ["expected a mapping of sections"]),
    "binary": (b"\x80\x81\x82", ["cannot read the recipe"]),
    "a tab": (b"data:\n\ttest: 0.1\n", ["found broken YAML"]),
    "an object of Python": (b"name: !!python/object/apply:os.system ['true']\n", ["found broken YAML"]),
    "endless recursion": (b"&a [*a]", ["expected a mapping of sections"]),
    "merge": (b"a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", ["twice"]),
    "a key that is no text": (b"1: 2\n", ["key '1'"]),
    "sections missing": (b"name: x\n", ["key 'data' is missing", "key 'model' is missing"]),
    "a section twice": (
        yaml.safe_dump(RECIPE).encode() + b"loop: {rounds: 1}\nloop: {rounds: 5}\n",
        ["'loop'", "twice"],
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_at_fault_are_named(cli: Cli, name: str) -> None:
    content, wanted = RECIPES[name]
    path = cli.source("mine.yaml", content)
    message = cli.refused("run", path, "--out", cli.out)
    for part in (str(path), *wanted):
        assert part in message
    assert not cli.out.exists()


def test_a_recipe_that_is_a_folder_or_missing_is_named(cli: Cli) -> None:
    assert f"{cli.tmp_path}: found no such recipe" in cli.refused("run", cli.tmp_path)
    assert "quickstrat: found no such recipe" in cli.refused("run", "quickstrat")


def test_a_recipe_nobody_may_read_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, cli.recipe)
    assert f"{cli.recipe}: cannot read the recipe" in cli.refused("run", cli.recipe, "--out", cli.out)


def test_until_an_unknown_stage_lists_the_stages(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    message = cli.refused("run", cli.recipe, "--data", source, "--out", cli.out, "--until", "the end")
    assert "--until: found 'the end', expected one of data, policy-sft, reward" in message
    assert not cli.out.exists()


def test_a_folder_with_other_files_is_kept(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    cli.out.mkdir()
    (cli.out / "thesis.tex").write_text("mine")
    code, message = cli.run_data(source)
    assert code == 2
    assert f"{cli.out}: found a folder that holds other files" in message
    assert [path.name for path in cli.out.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_kept(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    cli.out.write_text("mine")
    code, message = cli.run_data(source)
    assert code == 2
    assert f"{cli.out}: found a file" in message
    code, message = cli("run", cli.recipe, "--data", source, "--out", cli.out / "below", "--until", "data")
    assert code == 2
    assert_one_message(message)
    assert "Not a directory" in message
    assert cli.out.read_text() == "mine"


def test_another_run_in_the_folder_is_kept(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    assert cli.run_data(source) == (0, "")
    before = {path: path.read_bytes() for path in cli.out.rglob("*") if path.is_file()}
    for option, named in (("seed=5", "seed: found 0, now 5"), ("data.pairs=30", "data.pairs: found None, now 30")):
        code, message = cli.run_data(source, "--set", option)
        assert code == 2
        assert named in message
        assert "--update" in message
    source.write_bytes(lines(*GOOD[:30]))
    code, message = cli.run_data(source)
    assert code == 2
    assert "data.source: found" in message
    assert {path: path.read_bytes() for path in cli.out.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_one_message(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, message = cli.run_data(source)
    assert code == 2
    assert_one_message(message)
    assert "No space left on device" in message
    monkeypatch.undo()
    assert cli.run_data(source)[0] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk with a size in KiB; skips if mounting is not allowed."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk-{kib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount here")
        if done.returncode != 0:
            pytest.skip("may not mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


POCKET = {**RECIPE, "data": {**RECIPE["data"], "source": "pocket", "pairs": 60, "max_new_tokens": 8}}


@pytest.mark.parametrize(("kib", "stage"), [(16, "data"), (120, "policy-sft")])
def test_a_disk_that_fills_up_loses_nothing(
    cli: Cli, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, kib: int, stage: str
) -> None:
    disk = small_disk(kib)
    cli.recipe.write_text(yaml.safe_dump({**POCKET, "evaluation": {"items": 4, "fresh_pairs": 4, "resamples": 20}}))
    command = ["run", cli.recipe, "--out", disk / "run", "--until", stage]
    in_threads: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", in_threads.append)  # the user would see a traceback
    code, errors = cli(*command)
    assert code == 2, errors
    assert_one_message(errors)
    assert "No space left on device" in errors
    assert in_threads == []
    records = [json.loads(path.read_text()) for path in disk.rglob("stage.json")]
    assert all(record["status"] in ("started", "done") for record in records)
    assert not list(disk.rglob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    code, errors = cli(*command)
    assert code == 0, errors


def test_from_a_shell_it_is_one_line_and_code_two(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD[:2], '{"prompt": "q", "chosen": 3, "rejected": "b"}'))
    expected = f"Error: {source}:3: field 'chosen': found a number (3), expected a string, or a list of messages"
    command = [sys.executable, "-m", "pitlm.cli.main", "data", "inspect", source]  # a verb that starts in a moment
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for code, errors in ((done.returncode, done.stderr), cli("run", cli.recipe, "--data", source, "--out", cli.out)):
        assert code == 2
        assert errors.startswith(expected)
        assert len(errors.splitlines()) == 1
    assert not cli.out.exists()


def test_a_run_that_stops_early_says_how_far_it_came(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    with pytest.raises(SystemExit):
        main(["run", str(cli.recipe), "--data", str(source), "--out", str(cli.out), "--until", "data"])
    printed = " ".join(cli.capsys.readouterr().out.split())
    assert "1 of 10 stages run" in printed
    assert printed.endswith("To go on, give the command without --until.")
    assert "R_PIT" not in printed  # no gap model has been trained yet


@pytest.mark.parametrize(("peft", "warns"), [("{}", False), ("null", True)])
def test_whole_weights_in_bfloat16_bring_a_warning(cli: Cli, peft: str, warns: bool) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    command = ["run", cli.recipe, "--data", source, "--out", cli.out, "--until", "data", "--set", f"peft={peft}"]
    with pytest.raises(SystemExit):
        main([*map(str, command), "--set", "model.dtype=bfloat16"])
    printed = " ".join(cli.capsys.readouterr().out.split())
    assert "1 of 10 stages run" in printed
    assert ("Warning: whole weights in bfloat16 lose most steps below 3e-4" in printed) == warns
