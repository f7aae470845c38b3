"""The calibration beside a gap model, and when its promise is about another loop."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from builders import scorer_checkpoint

from pitlm import improve
from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import StopReason
from pitlm.loop.calibration import Calibration, load_calibrations, margin_for, save_calibrations
from pitlm.models.scorers import GapModel, GuardedGap, load_gaps

SETTINGS = LoopSection(rounds=5)
ALONE, GUARDED = GapModel.name, GuardedGap.name
KNOWN = Calibration(ALONE, 0.75, 0.02, 0.9, 3, "truth", SETTINGS, (0.5, -0.25, 0.0), (1.0, 0.5, 2.0))


def test_what_is_saved_is_read_again(tmp_path):
    both = {ALONE: KNOWN, GUARDED: replace(KNOWN, scorer=GUARDED, margin=math.inf)}
    save_calibrations(tmp_path, both)
    assert load_calibrations(tmp_path) == both
    assert "Infinity" not in (tmp_path / "calibration.json").read_text()
    assert load_calibrations(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"R_PIT": {}}', '{"R_PIT": {"margin": 1, "settings": {"rounds": 0}}}']
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(InputError, match=r"calibration\.json: cannot load a calibration .run `pit calibrate` again"):
        load_calibrations(tmp_path)


def test_the_loop_finds_the_margin_beside_the_model(bases, tmp_path):
    gap, reward = (scorer_checkpoint(bases("words"), tmp_path / kind, kind) for kind in ("gap", "reward"))
    alone, guarded = GapModel.from_pretrained(gap), load_gaps(gap, reward)
    assert margin_for(alone, SETTINGS) == margin_for(guarded, SETTINGS) == 0.0
    save_calibrations(gap, {ALONE: KNOWN, GUARDED: replace(KNOWN, margin=0.25)})
    assert margin_for(alone, SETTINGS) == 0.75
    assert margin_for(guarded, SETTINGS) == 0.25
    assert margin_for(alone, LoopSection(margin=0.0)) == 0.0
    save_calibrations(gap, {ALONE: replace(KNOWN, margin=math.inf)})
    assert margin_for(alone, SETTINGS) == math.inf
    assert margin_for(guarded, SETTINGS) == 0.0
    trace = improve("is it small ?", "yes .", improver=lambda prompt, reference: "no .", gap=alone)
    assert (trace.final, trace.rounds, trace.stop_reason) == ("yes .", (), StopReason.ACCEPTED_NONE)


def test_a_scorer_of_ones_own_may_have_a_margin():
    assert margin_for(SimpleNamespace(margin=0.5), SETTINGS) == 0.5
    assert margin_for(SimpleNamespace(margin=0.5), LoopSection(margin=0.25)) == 0.25
    assert margin_for(SimpleNamespace(), SETTINGS) == margin_for(SimpleNamespace(margin=None), SETTINGS) == 0.0
    assert margin_for(KNOWN, SETTINGS) == 0.75


@pytest.mark.parametrize(
    ("settings", "doubt"),
    [
        ({}, None),
        ({"tokens": 50}, None),
        ({"margin": 0.75}, None),
        ({"margin": 2.0}, None),
        ({"margin": 0.5}, "margin 0.5 is set; the promise about harm needs 0.75"),
        ({"rounds": 3}, "rounds is 3; the margin was calibrated with 5"),
        ({"proposals": 4}, "proposals is 4; the margin was calibrated with 1"),
        ({"temperature": 1.0}, "temperature is 1; the margin was calibrated with 0.4"),
    ],
)
def test_the_promise_is_about_the_loop_that_was_calibrated(settings, doubt):
    found = KNOWN.doubt(SETTINGS.model_copy(update=settings))
    hopeless = replace(KNOWN, margin=math.inf).doubt(LoopSection(rounds=5, margin=9.0))
    assert hopeless == "margin 9 is set; the promise about harm can be kept by no margin"
    assert found is None if doubt is None else found.startswith(doubt)
