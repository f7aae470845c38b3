"""Health of a job: figures by hand, and warnings exactly when they are due."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pitlm.batch.job_health import health
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Prompt, Round, StopReason, Trace
from pitlm.loop.calibration import Calibration
from pitlm.loop.chains import first_growth

X = Prompt.of("x")


def trace(original, proposal, gap=1.0, accepted=True):
    return Trace(X, original, (Round(proposal, gap, accepted),), StopReason.ROUNDS)


def calibration(gaps, growth):
    settings = LoopSection()
    return Calibration("R_PIT", 0.5, 0.02, 0.9, len(gaps), "truth", settings, tuple(gaps), tuple(growth))


def test_figures_by_hand():
    traces = [
        trace("aaaa", "bb", 1.0),
        trace("aaaa", "cccccc", 3.0),
        trace("aa", "dddd", -1.0, accepted=False),
        Trace(X, "aa", (), StopReason.CANCELLED),
    ]
    found = health(traces)
    assert (found.answers, found.copy_rate, found.drift) == (4, 0.5, {})
    assert found.growth == (2 + 6 + 2 + 2) / (4 + 4 + 2 + 2)
    assert found.changed_growth == (2 + 6) / 8
    assert found.gaps == tuple(np.quantile([1.0, 3.0, -1.0], [0.05, 0.25, 0.5, 0.75, 0.95]))
    assert first_growth(traces) == [0.5, 1.5, 2.0]
    assert found.sentences()[0] == "50.0% of 4 answers unchanged; length 1.00 times that before."


def test_nothing_and_the_empty_answer_are_no_error():
    assert math.isnan(health([]).copy_rate)
    assert [line[:5] for line in health([Trace(X, "a", (), StopReason.CANCELLED)]).sentences()] == ["100.0"]
    assert math.isnan(health([trace("", "b")]).growth)
    assert first_growth([trace("", "bb")]) == [2.0]
    assert health([trace("a", "b", math.nan)]).gaps[0] is not None


@pytest.mark.parametrize(("copies", "warned"), [(18, False), (19, True), (20, True)])
def test_a_run_that_changes_nothing_looks_like_a_no_op(copies, warned):
    traces = [trace("a", "b", accepted=False)] * copies + [trace("a", "b")] * (20 - copies)
    assert any("no-op" in warning for warning in health(traces).warnings) is warned


@pytest.mark.parametrize(("length", "warned"), [(10, False), (14, False), (15, True)])
def test_a_run_that_only_lengthens_looks_like_padding(length, warned):
    found = health([trace("a" * 10, "b" * length)] * 30)
    assert any("padding" in warning for warning in found.warnings) is warned
    assert any("Warning: This looks like padding" in line for line in found.sentences()) is warned


def test_a_few_answers_are_no_ground_for_a_warning():
    assert health([trace("a", "bbbb")] * 5).warnings == ()


def test_drift_is_seen_against_the_calibration_and_like_is_not():
    rng = np.random.default_rng(0)

    def run(shift, longer):
        lengths, gaps = rng.integers(5, 15, 300), rng.normal(shift, 1, 300)
        return [trace("a" * 10, "b" * (length + longer), gap) for length, gap in zip(lengths, gaps, strict=True)]

    then = run(0, 0)
    known = calibration([t.gaps[0] for t in then], first_growth(then))
    same = health(run(0, 0), known)
    assert same.warnings == ()
    assert set(same.drift) == {"gap", "length"}
    assert max(same.drift.values()) < 0.15
    [warning] = health(run(1.5, 0), known).warnings
    assert warning.startswith("The gaps of the first proposals are not those of the calibration")
    [warning] = health(run(0, 4), known).warnings
    assert warning.startswith("The lengths of the first proposals are not those of the calibration")
