"""`pit run --accelerate cpu`: a rank that dies ends the run with one line, and the same command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from pitlm.cli.run import run
from pitlm.core.errors import InputError
from pitlm.core.packaged_recipes import LAUNCHES, find_launch, find_recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.run.run_recipe import run_recipe


def logged(root: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (root / stage / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def ranks(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """Return the training processes, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):
            if "pitlm.run.rank" in child.cmdline():
                found[child.environ()["RANK"]] = child
    return found


def kill_in_training(shell: Any, arguments: list[object], stage: Path, victim: str | None) -> subprocess.Popen[str]:
    """Start the command; once the stage has a checkpoint, kill one of its ranks, or the command itself."""
    process = subprocess.Popen(
        shell.command(*arguments), cwd=shell.folder, env=shell.environment, text=True, stdout=subprocess.PIPE, stderr=-1
    )
    found: dict[str, psutil.Process] = {}
    while len(found) < 2 or not list(stage.glob("checkpoints/*/trainer_state.json")):
        found = found if len(found) == 2 else ranks(process)
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    (psutil.Process(process.pid) if victim is None else found[victim]).send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(found.values(), timeout=600)
    assert not alive
    return process


def assert_as_one_process(root: Path, whole: Path, stage: str) -> None:
    expected, found = (logged(run, stage) for run in (whole, root))
    assert [row["step"] for row in found] == [row["step"] for row in expected], "steps are missing, or there twice"
    # float32 sums in another order
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=1e-5)
    weights, others = (load_file(run / stage / "model" / "model.safetensors") for run in (whole, root))
    assert others.keys() == weights.keys()
    assert all((others[name] - weight).abs().max() < 1e-4 for name, weight in weights.items())


@pytest.mark.slow  # two launches take half a minute
def test_a_killed_rank_ends_the_run_with_one_line_and_it_goes_on(shell: Any, tiny_run: Any) -> None:
    root = shell.folder / "run"
    arguments: list[object] = ["run", tiny_run.recipe, "--out", root, "--accelerate", "cpu", "--until", "policy-sft"]
    process = kill_in_training(shell, arguments, root / "policy-sft", "1")
    output, errors = process.communicate(timeout=600)
    logs = root / "policy-sft" / "rank-*.log"
    told = f"Error: policy-sft: rank 1 of 2 was killed (SIGKILL). See {logs}; the same command goes on.\n"
    assert errors.endswith(told)
    assert "Traceback" not in output + errors
    assert process.returncode == 1
    reached = max(int(path.name.rpartition("-")[2]) for path in root.glob("policy-sft/checkpoints/checkpoint-*"))
    assert reached < 36
    assert json.loads((root / "policy-sft" / "stage.json").read_text())["status"] == "started"
    done = shell.process(*arguments)
    assert done.returncode == 0, done.stderr
    assert "policy-sft (goes on)" in done.stdout
    assert "36/36" in done.stdout
    assert_as_one_process(root, tiny_run.root, "policy-sft")
    assert not (root / "policy-sft" / "checkpoints").exists()


@pytest.mark.slow
def test_the_ranks_of_a_killed_command_die_with_it_and_one_process_may_go_on(shell: Any, tiny_run: Any) -> None:
    root = shell.folder / "run"
    arguments: list[object] = ["run", tiny_run.recipe, "--out", root]
    kill_in_training(shell, [*arguments, "--accelerate", "cpu"], root / "policy-sft", None).communicate()
    done = shell.process(*arguments)
    assert done.returncode == 0, done.stderr
    assert "policy-sft (goes on)" in done.stdout
    for stage in ("policy-sft", "reward", "improver-sft", "gap"):
        assert_as_one_process(root, tiny_run.root, stage)


@pytest.mark.slow
def test_a_whole_run_on_two_processes(shell: Any, tiny_run: Any) -> None:
    root = shell.folder / "run"
    done = shell.process("run", tiny_run.recipe, "--out", root, "--accelerate", "cpu")
    assert done.returncode == 0, done.stderr
    for stage in ("policy-sft", "reward", "improver-sft", "gap"):
        assert_as_one_process(root, tiny_run.root, stage)
    # One process samples before training, from weights that are equal except for rounding.
    references = (run / "rl-0-data" / "references.jsonl" for run in (root, tiny_run.root))
    assert len({path.read_text() for path in references}) == 1
    for stage in ("rl-0-data", "rl-1-policy"):  # each rank samples from its own random numbers
        assert [row["step"] for row in logged(root, stage)] == [1, 2, 3, 4, 5, 6]
        assert logged(root, stage)[0]["num_tokens"] > 0
    assert (root / "report.html").is_file()


def test_a_launch_that_cannot_be_leaves_nothing_behind(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("quickstart"), {"gap.batch_size": "9"})
    with pytest.raises(InputError, match=r"gap\.batch_size: found 9, expected a multiple of 2"):
        run_recipe(recipe, tmp_path / "here", accelerate=find_launch("cpu"))
    assert not (tmp_path / "here").exists()


def test_help_names_the_packaged_configurations() -> None:
    told = next(option.help for option in run.params if option.name == "accelerate")
    assert all(f"{path.stem}," in told for path in LAUNCHES.glob("*.yaml"))
