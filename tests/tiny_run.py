"""One tiny complete run in the pocket world, made once for all test workers."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from builders import generator_checkpoint, scorer_checkpoint

from pitlm.cli.main import main

SFT = {"batch_size": 8, "log_every": 1, "save_every": 3}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "source": "pocket",
        "pairs": 300,
        "test": 0.12,
        "validation": 0.1,
        "max_prompt_tokens": 48,
        "max_response_tokens": 44,
        "max_new_tokens": 16,
    },
    "model": {
        "init": {"layers": 1, "hidden": 32, "heads": 2, "mlp": 32, "tokenizer": "words"},
        "improver_start": "policy",
    },
    "template": {"ask": "better"},
    "policy_sft": {"learning_rate": 5e-3, "max_steps": 36, "epochs": 9, **SFT},
    "reward": {"learning_rate": 2e-3, "max_steps": 8, **SFT},
    "improver_sft": {"learning_rate": 3e-3, "max_steps": 12, "epochs": 9, **SFT},
    "gap": {"learning_rate": 2e-3, "max_steps": 24, "epochs": 9, **SFT},
    "curriculum": {
        "stages": ["data", "policy"],
        "rl": {"learning_rate": 1e-3, "max_steps": 6, "batch_size": 8, "group": 4, "beta": 0.1, "save_every": 2},
    },
    "evaluation": {"items": 16, "fresh_pairs": 16, "resamples": 100, "batch_size": 16},
}


@dataclass(frozen=True)
class Shell:
    """Runs `pit` in its own folder."""

    folder: Path

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "pitlm.cli.main", *map(str, arguments)]

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_HUB_OFFLINE": "1", **os.environ, "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Call `pit` in this process, which has imported torch already: a process of its own takes seconds for that."""
        words = [*map(str, arguments)]
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ),  # main() sets variables; restore the old values
            contextlib.redirect_stdout(io.StringIO()) as output,
            contextlib.redirect_stderr(io.StringIO()) as errors,
            pytest.raises(SystemExit) as stop,
        ):
            main(words)
        assert isinstance(stop.value.code, int)
        return subprocess.CompletedProcess(words, stop.value.code, output.getvalue(), errors.getvalue())

    def process(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `pit` as a process of its own, with these variables besides the usual environment."""
        environment = {**self.environment, **variables}
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env=environment, capture_output=True, text=True
        )


@dataclass(frozen=True)
class TinyRun:
    """A finished run: its folder, its recipe, and the command's output."""

    root: Path
    recipe: Path
    output: str


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TinyRun:
    """The shared run of all workers. Never write to it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny-run"
    folder.mkdir(exist_ok=True)
    run = folder / "runs" / "tiny"
    recipe, printed = folder / "tiny.yaml", folder / "printed.txt"
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            recipe.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
            done = Shell(folder).process("run", recipe)  # the default folder is runs/NAME
            assert done.returncode == 0, done.stderr
            printed.write_text(done.stdout)
    return TinyRun(run, recipe, printed.read_text())


@pytest.fixture(scope="module")
def models(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an improver, a policy and a gap model, all untrained."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("improver", "policy"):
        generator_checkpoint(bases("words"), folder / kind, kind)
    scorer_checkpoint(bases("words"), folder / "gap", "gap")
    return folder
