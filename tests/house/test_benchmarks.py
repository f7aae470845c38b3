"""The benchmarks run, and write the figures that they promise."""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from pitlm.evaluate.alpaca import leaderboard
from pitlm.evaluate.verdict_files import read_verdicts

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


def test_the_table_of_the_bench_is_made_of_the_stored_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import bench

    docs = ROOT / "docs"
    stored = json.loads((docs / "bench.json").read_text())
    assert (docs / "bench.md").read_text() == bench.page(stored)
    # The table has each benchmark, and each benchmark is a file.
    assert bench.BENCHMARKS.keys() == stored.keys() - {"machine", "growth"}
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in bench.BENCHMARKS)


def test_an_exponent_is_that_of_the_largest_sizes_and_leaves_out_the_start(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import growth

    sizes = [1, 10, 100, 1000]
    assert growth.exponent(sizes, [5, *(3 * n**1.5 for n in sizes[1:])]) == pytest.approx(1.5)
    assert growth.exponent(sizes, [400 + 3 * n**1.2 for n in sizes], starts=True) == pytest.approx(1.2, abs=0.01)
    # A measured start that varies by a twentieth, beside which the first two sizes cost next to nothing.
    sizes = [1_000, 10_000, 100_000, 1_000_000]
    assert growth.exponent(sizes, [1.93, 1.98, 3.71, 22.17], starts=True) == pytest.approx(1.04, abs=0.05)
    assert growth.powers(3, 6, 1.0) == [1_000, 10_000, 100_000, 1_000_000]
    assert growth.powers(3, 6, 0.01) == [1_000, 10_000]
    assert growth.powers(3, 6, 1e-9) == [1_000]


def test_a_rate_leaves_out_the_start(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import bench

    assert bench.rates({"sizes": [1, 64], "cost": [0.5, 16.0]}) == (2.0, 4.0)
    assert bench.rates({"sizes": [1, 101, 1001], "cost": [4.0, 5.0, 14.0], "starts": True}) == (100.0, 100.0)
    assert bench.rates({"sizes": [1, 101], "cost": [4.0, 5.0], "starts": True}) == (100.0, 100.0)
    assert bench.rates({"sizes": [1, 2], "cost": [1.0, 1.0], "rates": [300.0, 200.0]}) == (300.0, 200.0)


def test_the_plain_rates_of_the_evaluate_benchmark_are_those_of_pit_evaluate(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import evaluate

    [first, _] = evaluate.make_files(tmp_path, systems=2, items=30)
    rows = json.loads(first.read_text())
    plain = subprocess.run([sys.executable, "-c", evaluate.PLAIN, first], capture_output=True, text=True, check=True)
    mean, error = map(float, plain.stdout.split())
    assert mean == pytest.approx(sum(row["preference"] - 1 for row in rows) / 30)
    ours = evaluate_figures(first)
    assert 100 * mean == pytest.approx(ours["win_rate"])
    assert 100 * error == pytest.approx(ours["standard_error"])


def evaluate_figures(file):
    """The leaderboard's figures of one file of annotations."""
    return asdict(leaderboard([one.row for one in read_verdicts([file])]))


def test_the_lengths_of_hh_rlhf_are_those_of_the_pairs(monkeypatch):
    data = ROOT.parent / "shared" / "data" / "hh-rlhf"
    if not data.is_dir():
        pytest.skip("HH-RLHF is not here")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gap

    assert gap.measured(data) == gap.hh_lengths(argparse.Namespace(pairs=None))
