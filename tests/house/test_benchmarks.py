"""The benchmarks run, and write the figures that they promise."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(tmp_path, monkeypatch, capfd):
    """Run a benchmark in this process; return what it prints and its figures."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def run(name, *options):
        out = tmp_path / "deep" / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options, "--json", str(out)])
        capfd.readouterr()
        importlib.import_module(name).main()
        printed = capfd.readouterr()
        assert printed.err == ""
        return printed.out, json.loads(out.read_text())

    return run


def test_the_gap_benchmark_writes_a_figure_for_each_promise(benchmark):
    printed, by_shape = benchmark("gap", "--shapes", "pocket", "--rounds", "1")
    assert printed.startswith("pocket  training  x")
    figures = by_shape["pocket"]
    assert {"train_ratio", "score_ratio", "token_ratio", "peak_ratio", "bound_share"} <= figures.keys()
    assert 1.5 < figures["token_ratio"] < 2.5  # tokens are counted, not timed
    assert figures["padding_tree"] == 0.0 < figures["padding_rows"]
    assert figures["bound_share"] == min(figures["train_bound_share"], figures["score_bound_share"])


def test_the_improve_benchmark_writes_a_figure_for_each_promise(benchmark):
    sizes = ["--items", "6", "--rounds", "1", "--tokens-per-batch", "2048"]
    printed, by_model = benchmark("improve", "--models", "tiny", *sizes)
    assert printed.startswith("tiny      throughput x")
    figures = by_model["tiny"]
    assert figures["same_answers"] is True
    assert figures["throughput_ratio"] > 0
    assert 1 <= figures["loop_rounds"] <= 3
    assert figures["throughput_ratio"] == pytest.approx(figures["items_per_second"] / figures["items_per_second_plain"])
    assert 20 < figures["mean_tokens"] < 250  # HH-RLHF's mean of 85


def test_the_lengths_of_hh_rlhf_are_those_of_the_pairs(monkeypatch):
    data = ROOT.parent / "shared" / "data" / "hh-rlhf"
    if not data.is_dir():
        pytest.skip("HH-RLHF is not here")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gap

    assert gap.measured(data) == gap.hh_lengths(argparse.Namespace(pairs=None))
