"""The benchmarks run, and write the figures that they promise."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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


def test_the_improve_benchmark_writes_a_figure_for_each_promise(tmp_path):
    out = tmp_path / "deep" / "improve.json"
    command = [sys.executable, ROOT / "benchmarks" / "improve.py", "--models", "tiny", "--json", out]
    sizes = ["--items", "6", "--rounds", "1", "--tokens-per-batch", "2048"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("tiny      throughput x")
    figures = json.loads(out.read_text())["tiny"]
    assert figures["same_answers"] is True
    assert figures["throughput_ratio"] > 0
    assert 1 <= figures["loop_rounds"] <= 3
    assert figures["throughput_ratio"] == pytest.approx(figures["items_per_second"] / figures["items_per_second_plain"])
    assert 20 < figures["mean_tokens"] < 250  # HH-RLHF's mean of 85


def test_the_lengths_of_hh_rlhf_are_those_of_the_pairs():
    data = ROOT.parent / "shared" / "data" / "hh-rlhf"
    if not data.is_dir():
        pytest.skip("HH-RLHF is not here")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gap

    assert gap.measured(data) == gap.hh_lengths(argparse.Namespace(pairs=None))
