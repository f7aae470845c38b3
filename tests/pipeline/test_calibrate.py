"""`pit calibrate`, as a user meets it: a promise, a margin, and a loop that keeps to it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

PROMPT = "lamp : price nine color red size small . price ?"
pytestmark = pytest.mark.timeout(1200)  # a minute where nothing else runs


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    rows = [{"prompt": PROMPT, "response": f"price {word} ."} for word in ("nine", "twelve", "thirty", "sixty", "none")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def calibrated(tiny_run: Any, tmp_path: Path) -> Path:
    """A copy of the run, because calibrating writes beside its gap model."""
    return Path(shutil.copytree(tiny_run.root, tmp_path / "copy"))


def test_calibrating_stores_a_margin_that_improving_then_uses(
    calibrated: Path, shell: Any, answers: Path, tmp_path: Path
) -> None:
    done = shell("calibrate", "--run", calibrated, "--harm", 0.6, "--json", tmp_path / "curve.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "curve.json").read_text())
    stored = json.loads((calibrated / "gap" / "model" / "calibration.json").read_text())
    assert set(figures) == set(stored) == {"R_PIT", "R_PIT and R_P"}
    assert "always accept" in done.stdout
    assert "made worse" in (calibrated / "calibration.svg").read_text()
    for name, found in figures.items():
        assert f"{name}: chosen on {stored[name]['items']} fresh answers, up to 3 rounds, judge: true" in done.stdout
        assert found["chosen"]["margin"] == stored[name]["margin"] is not None
        assert found["held_out"]["items"] == 16
        assert stored[name]["items"] == found["chosen"]["items"] > 16
    # So much may go wrong here that any margin would do. Make it the one that lets nothing through, and see it used.
    stored["R_PIT and R_P"]["margin"] = None
    (calibrated / "gap" / "model" / "calibration.json").write_text(json.dumps(stored))
    done = shell("improve", answers, "-o", tmp_path / "better.jsonl", "--run", calibrated)
    assert done.returncode == 0, done.stderr
    assert "5 answers, 0 changed. Stopped: accepted-none 5." in done.stdout
    assert "100.0% of 5 answers unchanged" in done.stdout
    done = shell("improve", answers, "-o", tmp_path / "again.jsonl", "--run", calibrated, "--margin", 0)
    assert re.search(r"Gaps of the first proposals: .* Distance from the calibration's: gaps 0\.", done.stdout)
    assert "Warning: margin 0 is set; the promise about harm can be kept by no margin." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "nowhere: found no recipe.json, expected the folder of a run"),
        (["--run", "nowhere", "--harm", "0"], "Invalid value for '--harm'"),
        (["--run", "nowhere", "--confidence", "1.5"], "Invalid value for '--confidence'"),
        ([], "Missing option '--run'"),
    ],
)
def test_what_cannot_be_calibrated_is_named(shell: Any, arguments: list[str], message: str) -> None:
    done = shell("calibrate", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
