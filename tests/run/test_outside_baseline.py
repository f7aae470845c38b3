"""A baseline from a package outside pitlm: a recipe names it, and the run's table shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pitlm.run.results import run_verdicts

MODULE = """
from pitlm.core.nouns import Round
from pitlm.loop.baselines.baseline import Baseline
from pitlm.loop.chains import without_stop_rule


def shout(systems):
    return [
        without_stop_rule(prompt, y, [Round(y + " !", 0.0, True, tokens=1)])
        for prompt, y in zip(systems.prompts, systems.y0, strict=True)
    ]


SHOUT = Baseline("shouting", shout)
"""


def test_a_package_outside_pitlm_adds_a_baseline(
    tiny_run: Any, shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    metadata = package / "loud-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[pitlm.baselines]\nshout = loud:SHOUT\n")
    (package / "loud.py").write_text(MODULE)
    recipe = yaml.safe_load(tiny_run.recipe.read_text())
    recipe["evaluation"]["baselines"] = ["sft", "shout"]
    (tmp_path / "loud.yaml").write_text(yaml.safe_dump(recipe))
    run = shutil.copytree(tiny_run.root, tmp_path / "run")

    command = ("run", tmp_path / "loud.yaml", "--out", run, "--update")
    refused = shell(*command)
    assert refused.returncode == 2
    assert "evaluation.baselines: found 'shout'" in " ".join(refused.stderr.split())
    monkeypatch.syspath_prepend(package)
    done = shell(*command)
    assert done.returncode == 0, done.stderr
    [_, answered] = run_verdicts(run)
    assert list(answered) == ["original", "SFT-only improver", "shouting", "PIT"]
    assert answered["shouting"].generated_tokens == 1
    result = json.loads((run / "evaluation" / "stage.json").read_text())["result"]
    assert result["compared"] == [["PIT", "SFT-only improver"], ["PIT", "shouting"]]
    assert "shouting" in done.stdout
    assert "shouting" in (run / "report.html").read_text()
