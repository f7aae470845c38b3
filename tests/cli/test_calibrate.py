"""The output of `pit calibrate`."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pitlm.cli.calibrate import sentences
from pitlm.core.recipe import LoopSection
from pitlm.evaluate.margins import Calibrated
from pitlm.loop.margin import MarginOutcome
from pitlm.models.calibration import Calibration


def found(margin, items, labels_alone=1.25):
    known = Calibration("R_PIT", margin, 0.02, 0.9, items, "truth", LoopSection(), (), ())
    one = MarginOutcome(margin, items, 1, 0.5, 10.0)
    labels = MarginOutcome(margin, 200, 3, 0.5, 0.0)
    return Calibrated(known, [], one, one, one, one, labels, replace(labels, margin=labels_alone))


@pytest.mark.parametrize(
    ("margin", "items", "expected"),
    [
        (0.5, 500, "* the margin: at most 2.0% of such answers are made worse, with confidence 90%."),
        (
            math.inf,
            113,
            "No margin keeps the promise (it takes 114 answers to promise this): the loop will change nothing.",
        ),
        (
            math.inf,
            500,
            "No margin keeps the promise (every margin makes too many worse): the loop will change nothing.",
        ),
    ],
)
def test_the_promise_or_why_there_is_none(margin, items, expected):
    assert sentences(found(margin, items))[0].startswith(expected)


def test_what_labels_say():
    assert "On 200 held-out pairs" in sentences(found(0.5, 500))[1]
    assert sentences(found(0.5, 500))[1].endswith("find 1.5% made worse; the labels by themselves would ask for 1.25.")
    assert sentences(found(0.5, 500, math.inf))[1].endswith("no margin would do by them.")
