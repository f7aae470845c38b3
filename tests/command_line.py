"""`pit`, called as from a shell, and small inputs for it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pitlm.cli.main import main

TRAIN = {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 4}


RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"test": 0.2, "validation": 0.2, "max_prompt_tokens": 64, "max_response_tokens": 32},
    "model": {"init": {"layers": 1, "hidden": 16, "heads": 2, "mlp": 16}, "improver_start": "policy"},
    "policy_sft": TRAIN,
    "reward": TRAIN,
    "improver_sft": TRAIN,
    "gap": TRAIN,
    "curriculum": {"rl": {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 4, "group": 2}},
}


def pair(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"question {number} ?", "chosen": f"a good answer {number}", "rejected": "a bad one", **fields}


def lines(*rows: Any) -> bytes:
    """JSON lines; bytes and strings are written as they are."""
    made = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()
        for row in rows
    ]
    return b"".join(row + b"\n" for row in made)


GOOD = [pair(number) for number in range(40)]


class Cli:
    """`pit`, called as from a shell."""

    def __init__(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        self.capsys, self.tmp_path = capsys, tmp_path
        self.out = tmp_path / "run"
        self.recipe = tmp_path / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(RECIPE))

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Return exit code and stderr."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert isinstance(stop.value.code, int)
        return stop.value.code, self.capsys.readouterr().err

    def source(self, name: str, content: bytes) -> Path:
        path = self.tmp_path / name
        path.write_bytes(content)
        return path

    def run_data(self, source: object, *options: object) -> tuple[int, str]:
        return self("run", self.recipe, "--data", source, "--out", self.out, "--until", "data", *options)

    def refused(self, *arguments: object) -> str:
        """Return the message of a call that must fail with bad input."""
        code, message = self(*arguments)
        assert code == 2, message
        assert_one_message(message)
        return message


def assert_one_message(message: str) -> None:
    assert "Traceback" not in message
    # Our message is one line from "Error:"; click prints the usage above it.
    assert [line.startswith(("Error: ", "Usage: ")) for line in message.splitlines()].count(True) in (1, 2), message
    assert message.count("Error: ") == 1, message


def chat(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} says"} for role in roles]


def deny(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Refuse to open ``path``, as the system does for users other than root."""
    import builtins
    import io

    real = io.open

    def guarded(file: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(file, int) and Path(file) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", guarded)
    monkeypatch.setattr(io, "open", guarded)
