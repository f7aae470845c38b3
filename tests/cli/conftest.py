"""`pit` as a fixture, for the tests of its verbs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import Cli

from pitlm.cli.main import ENVIRONMENT


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ENVIRONMENT:  # main() sets these for the process; restore the old values
        monkeypatch.setenv(name, os.environ.get(name, ENVIRONMENT[name]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Cli(capsys, tmp_path)
