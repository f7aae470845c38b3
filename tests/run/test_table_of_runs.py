"""The table of several runs, `benchmarks/slow/runs.py`."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from pitlm.evaluate.statistics import Interval


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "slow")
    return importlib.import_module("runs")


@pytest.fixture
def table_of_runs(script, tmp_path, monkeypatch, capsys):
    """Make the table of these runs; return what the script prints and its figures."""

    def run(*roots):
        out = tmp_path / "deep" / "runs.json"
        monkeypatch.setattr(sys, "argv", ["runs.py", *map(str, roots), "--json", str(out)])
        script.main()
        return capsys.readouterr().out, json.loads(out.read_text())

    return run


def test_the_table_of_runs_has_the_figures_of_each_run_and_their_mean(table_of_runs, tiny_run, tmp_path):
    again, unevaluated = tmp_path / "again", tmp_path / "unevaluated"
    shutil.copytree(tiny_run.root, again)
    shutil.copytree(tiny_run.root, unevaluated)
    shutil.rmtree(unevaluated / "evaluation")
    printed, by_run = table_of_runs(tiny_run.root, again)
    own = by_run[str(again)]
    assert own == by_run[str(tiny_run.root)]
    [line] = [line for line in tiny_run.output.splitlines() if line.startswith("PIT against the original")]
    delta = own["Delta: PIT"]
    assert f"Delta {100 * delta['estimate']:+.1f} [{100 * delta['low']:+.1f}, {100 * delta['high']:+.1f}]" in line
    # Two equal runs have a mean without spread, and PIT is not ahead of itself.
    cells = {cells[0]: cells[1:] for cells in (row.strip("| ").split(" | ") for row in printed.splitlines())}
    point = f"{100 * delta['estimate']:+.1f}"
    assert cells["Delta: PIT"][-1] == f"{point} [{point}, {point}]"
    assert "PIT less: PIT" not in cells
    less = own["PIT less: SFT-only improver"]["estimate"]
    assert less == pytest.approx(delta["estimate"] - own["Delta: SFT-only improver"]["estimate"])
    assert own["less bag of words: R_P"]["estimate"] == pytest.approx(
        own["right: Held-out pairs: ordinary reward model R_P"]["estimate"]
        - own["right: Held-out pairs: bag of words"]["estimate"]
    )
    # A run without an evaluation has the figures of its reward models alone, and no mean where one run has no figure.
    printed, by_run = table_of_runs(tiny_run.root, unevaluated)
    assert {row.partition(":")[0] for row in by_run[str(unevaluated)]} == {"right", "less bag of words"}
    [line] = [line for line in printed.splitlines() if line.startswith("| Delta: PIT |")]
    assert line.endswith("| - | - |")


def test_the_mean_of_the_table_of_runs_is_by_hand(script):
    columns = {name: {"Delta: PIT": Interval(x, x - 0.1, x + 0.1)} for name, x in (("a", 0.4), ("b", 0.5), ("c", 0.6))}
    # The t quantile for two degrees of freedom is 4.3027, and the standard error 0.1 / sqrt(3).
    expected = (
        "| Delta: PIT | +40.0 [+30.0, +50.0] | +50.0 [+40.0, +60.0] | +60.0 [+50.0, +70.0] | +50.0 [+25.2, +74.8] |"
    )
    assert script.table(columns).splitlines()[-1] == expected


def test_the_table_of_runs_refuses_a_folder_without_a_run(table_of_runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        table_of_runs(tmp_path)
    assert stop.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
