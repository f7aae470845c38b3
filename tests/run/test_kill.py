"""A run that is killed without warning goes on from there and ends with the same result."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

KILL = signal.SIGKILL


def status(root: Path, stage: str) -> str:
    path = root / stage / "stage.json"
    return str(json.loads(path.read_text())["status"]) if path.is_file() else "missing"


def checkpoints(root: Path, stage: str) -> list[int]:
    """Return the steps of complete checkpoints. The trainer writes its state last, and the kill may come before
    that."""
    steps = []
    for path in (root / stage).glob("checkpoints/checkpoint-*/trainer_state.json"):
        with suppress(ValueError, FileNotFoundError):
            steps.append(int(json.loads(path.read_text())["global_step"]))
    return steps


def kill_in(shell: Any, arguments: list[object], root: Path, stage: str, *, trains: bool) -> str:
    """Start the command, kill it in the middle of ``stage``, and return its output."""
    path = root.parent / f"output-{stage}.txt"
    with path.open("w") as output:
        process = subprocess.Popen(
            shell.command(*arguments), cwd=shell.folder, env=shell.environment, stdout=output, stderr=output
        )
        try:
            while not (status(root, stage) == "started" and (not trains or checkpoints(root, stage))):
                assert process.poll() is None, f"the command ended before it could be killed: {path.read_text()}"
                time.sleep(0.002)
        finally:
            process.send_signal(KILL)
            process.wait()
    assert status(root, stage) == "started", "killed too late"
    return path.read_text()


def metrics(root: Path, stage: str) -> list[dict[str, Any]]:
    """Return the rows of the steps, without the trainer's last row and without times."""
    rows = [json.loads(line) for line in (root / stage / "metrics.jsonl").read_text().splitlines()]
    # num_tokens: TRL restarts the count after an interruption; pitlm does not read it
    timed = ("step_time", "runtime", "per_second", "flos", "num_tokens")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in timed)}
        for row in rows
        if "loss" in row
    ]


def results(root: Path, stage: str) -> Any:
    """Return a stage's results, without times."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: plain(item) for key, item in value.items()}
            return {key: item for key, item in kept.items() if "runtime" not in key and "per_second" not in key}
        if isinstance(value, list):
            return [plain(item) for item in value]
        # NaN is unequal to itself
        return "nan" if isinstance(value, float) and math.isnan(value) else value

    return plain(json.loads((root / stage / "stage.json").read_text())["result"])


def stages_of(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/stage.json"))


def assert_like_uninterrupted(root: Path, whole: Path) -> None:
    assert stages_of(root) == stages_of(whole)
    for stage in stages_of(whole):
        if (whole / stage / "metrics.jsonl").exists():
            steps = [row["step"] for row in metrics(root, stage)]
            assert steps == list(range(1, len(steps) + 1)), f"{stage}: steps missing or twice"
            assert metrics(root, stage) == metrics(whole, stage), stage
        assert results(root, stage) == results(whole, stage), stage
    for name in ("verdicts.jsonl", "items.jsonl", "traces.jsonl"):
        assert (root / "evaluation" / name).read_bytes() == (whole / "evaluation" / name).read_bytes()


def killed_run(shell: Any, whole: Any, points: list[tuple[str, bool]]) -> None:
    """Kill the command at each point in turn and start it again each time; then let it finish."""
    root = shell.folder / "run"
    arguments = ["run", whole.recipe, "--out", root]
    reached: dict[str, int] = {}
    for number, (stage, trains) in enumerate(points):
        before = {name for name in stages_of(root) if status(root, name) == "done"} if root.exists() else set()
        printed = kill_in(shell, arguments, root, stage, trains=trains)
        for name in before:
            assert f"{name} (done before)" in printed
        if number:
            assert f"{points[number - 1][0]} (goes on)" in printed
        if trains:
            reached[stage] = max(checkpoints(root, stage))
        if number and points[number - 1][1]:
            assert_went_on(root, *points[number - 1][:1], reached[points[number - 1][0]])
    done = shell(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"{points[-1][0]} (goes on)" in done.stdout
    if points[-1][1]:
        assert_went_on(root, points[-1][0], reached[points[-1][0]])
    assert_like_uninterrupted(root, whole.root)


def assert_went_on(root: Path, stage: str, reached: int) -> None:
    """Each start of the trainer has its own log; the last log begins after the checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert reached > 0
    logs = [EventAccumulator(str(path)) for path in (root / stage / "logs").rglob("events.out.tfevents.*")]
    firsts = []
    for log in logs:
        log.Reload()
        if "train/loss" in log.Tags()["scalars"]:  # rows that the killed process had not flushed are lost
            firsts.append(min(event.step for event in log.Scalars("train/loss")))
    assert len(logs) >= 2
    assert max(firsts) == reached + 1, f"{stage} did not go on from step {reached}"


def test_killed_twice_it_ends_as_if_uninterrupted(shell: Any, tiny_run: Any) -> None:
    killed_run(shell, tiny_run, [("gap", True), ("rl-1-policy", True)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "points",
    [
        [("data", False), ("reward", True), ("evaluation", False)],
        [("improver-sft", True), ("rl-0-data", True), ("report", False)],
        [("policy-sft", False), ("gap", False), ("rl-1-policy", False)],
    ],
    ids=["data, reward, evaluation", "improver, first RL, report", "before the first checkpoint"],
)
def test_killed_anywhere_it_ends_as_if_uninterrupted(shell: Any, tiny_run: Any, points: list[tuple[str, bool]]) -> None:
    killed_run(shell, tiny_run, points)


KILLS = 5


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random_moments_it_ends_as_if_uninterrupted(shell: Any, tiny_run: Any, seed: int) -> None:
    """Weights, results and logs are equal bit for bit, and nothing is left of the attempts that were killed."""
    rng, root = random.Random(seed), shell.folder / "run"
    arguments = ["run", tiny_run.recipe, "--out", root]
    for _ in range(KILLS):
        with (shell.folder / "output.txt").open("w") as output:
            process = subprocess.Popen(
                shell.command(*arguments), cwd=shell.folder, env=shell.environment, stdout=output, stderr=output
            )
            with suppress(subprocess.TimeoutExpired):  # a process that is done before is killed in vain
                process.wait(3 + rng.expovariate(1 / 5))  # three seconds go by while the libraries are imported
            process.send_signal(KILL)
            process.wait()
    done = shell(*arguments)
    assert done.returncode == 0, done.stderr
    assert_like_uninterrupted(root, tiny_run.root)
    for name in ("*/model/*.safetensors", "*/base/*.safetensors", "*/probe.jsonl", "*/references.jsonl"):
        for path in tiny_run.root.glob(name):
            assert (root / path.relative_to(tiny_run.root)).read_bytes() == path.read_bytes(), path
    left = {path.relative_to(root) for path in root.rglob("*") if path.is_file() and "tfevents" not in path.name}
    known = {path.relative_to(tiny_run.root) for path in tiny_run.root.rglob("*") if path.is_file()}
    assert left <= known, left - known
