"""The benchmarks run, and write what is promised of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(120)
def test_the_gap_benchmark_writes_a_figure_for_each_promise(tmp_path):
    out = tmp_path / "deep" / "gap.json"
    command = [sys.executable, ROOT / "benchmarks" / "gap.py", "--shapes", "pocket", "--rounds", "1", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("pocket  training  x")
    figures = json.loads(out.read_text())["pocket"]
    assert {"train_ratio", "score_ratio", "token_ratio", "peak_ratio", "bound_share"} <= figures.keys()
    assert 1.5 < figures["token_ratio"] < 2.5  # tokens are counted, not timed
    assert figures["padding_tree"] == 0.0 < figures["padding_rows"]
    assert figures["bound_share"] == min(figures["train_bound_share"], figures["score_bound_share"])
