"""Intervals and rates at equal lengths where the truth is known: the simulations of benchmarks/intervals.py."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRAWS = 1500


@pytest.fixture
def intervals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("intervals")


@pytest.mark.slow
@pytest.mark.parametrize("win_rate", [0.5, 0.9, 0.95, 0.99, 0.995])
@pytest.mark.parametrize("items", [30, 100, 600])
def test_delta_s_interval_holds_the_truth(intervals, win_rate, items):
    """Between 93.5 and 97.5%. No interval can stay below 97.5% where there is often no loss at all: each outcome is then
    likely, and either held or not. There only the lower bound is asked for."""
    for ties in (0.0, 0.25, 0.5):
        for rows, alike in intervals.ROWS:
            noise = 0.0 if rows == 1 else 3.5 * math.sqrt(0.95 * 0.05 / DRAWS)
            found = intervals.coverage(items, win_rate, ties, rows, alike, DRAWS, seed=items)
            losses = items * (1 - ties) * (1 - win_rate)
            assert 0.935 - noise <= found, (ties, rows)
            assert found <= (0.975 + noise if losses >= 6 else 1.0), (ties, rows)


@pytest.mark.slow
@pytest.mark.parametrize("hard", [0.0, 0.5])
@pytest.mark.parametrize("shared", [0.0, 0.5, 0.8, 0.95])
def test_rates_at_equal_lengths_are_as_good_as_with_the_true_difficulties(intervals, shared, hard):
    found = intervals.equal_lengths(20, 805, shared, hard, 2)
    assert found["together"] < found["true difficulties"] + 0.35
    assert found["together"] < found["raw"] / 2
    assert abs(found["bias"]) < 1.0
    assert found["coverage"] > 0.85
    if hard and shared > 0.5:
        assert found["alone"] > found["together"] + 0.5
