"""Improving while somebody waits: what is kept, and what a failure costs."""

from __future__ import annotations

import asyncio
import math

import pytest
from scripted_models import Judge, Writer

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Prompt, StopReason
from pitlm.loop.live_loop import Bounds, Improving

X = Prompt.of("2 + 2 ?")
NONE = Bounds()


def drive(writer=None, judge=None, bounds=NONE, *, seconds=20.0, **settings):
    improving = Improving(writer or Writer(), judge or Judge(), LoopSection(**settings), seconds)
    return asyncio.run(improving(X, "Four .", bounds))


def test_rounds_go_on_while_the_gap_is_above_the_margin_that_the_scorer_was_calibrated_to():
    outcome = drive(rounds=5)
    assert outcome.trace.responses == ("Four .", "Four . Better", "Four . Better Better")
    assert outcome.trace.gaps == (1.0, 1.0, -1.0)
    assert (outcome.name, outcome.failure, outcome.trace.generated_tokens) == ("improved", "", 9)
    assert drive(judge=Judge(calibrated=1.0)).name == "kept"
    assert drive(judge=Judge(calibrated=1.0), margin=0.9).name == "improved"


def test_a_margin_of_infinity_asks_for_nothing():
    writer = Writer()
    outcome = drive(writer, Judge(calibrated=math.inf))
    assert (outcome.name, outcome.trace.rounds, writer.asked) == ("kept", (), [])


@pytest.mark.parametrize(
    ("writer", "judge"),
    [
        (Writer(failure="the improver is gone"), Judge()),
        (Writer(), Judge(failure="the gap model is gone")),
    ],
)
def test_a_model_that_fails_leaves_the_first_answer(writer, judge):
    outcome = drive(writer, judge)
    assert (outcome.name, outcome.trace.final, outcome.trace.stop_reason) == (
        "failed-open",
        "Four .",
        StopReason.CANCELLED,
    )
    assert "is gone" in outcome.failure


def test_so_does_whatever_else_goes_wrong():
    class Broken(Judge):
        async def gap(self, item):
            return None  # None is no gap

    outcome = drive(judge=Broken())
    assert (outcome.name, outcome.trace.final, outcome.failure) == (
        "failed-open",
        "Four .",
        "internal error (TypeError)",
    )


def test_a_model_that_is_slow_leaves_the_first_answer():
    outcome = drive(Writer(seconds=30), seconds=0.05)
    assert (outcome.name, outcome.trace.final) == ("failed-open", "Four .")
    assert (outcome.failure, outcome.trace.stop_reason) == ("time limit", StopReason.SECONDS)


def test_a_round_that_has_ended_stands_when_the_next_one_fails():
    class Once(Writer):
        async def propose(self, *args, **kwargs):
            self.failure = "the improver is gone" if self.asked else ""
            return await super().propose(*args, **kwargs)

    outcome = drive(Once(), rounds=3)
    assert (outcome.name, outcome.trace.final) == ("improved", "Four . Better")
    assert outcome.failure == "the improver is gone"


def test_bounds_of_the_first_answer_hold_for_the_improved_one():
    writer = Writer(suffix=" Better END and more")
    outcome = drive(writer, bounds=Bounds(stop=("XX", "END"), temperature=0.1, seed=7, rounds=2), rounds=3)
    assert outcome.trace.responses[1] == "Four . Better"
    assert [(asked["temperature"], asked["seed"]) for asked in writer.asked] == [(0.1, 7), (0.1, 8)]
    assert outcome.trace.stop_reason is StopReason.ROUNDS
    hot = Writer()
    drive(hot, bounds=Bounds(temperature=1.5, rounds=9), rounds=1)
    assert [asked["temperature"] for asked in hot.asked] == [0.4]


def test_a_proposal_longer_than_the_client_allows_is_not_even_scored():
    outcome = drive(Writer(tokens=6), bounds=Bounds(max_tokens=5))
    assert outcome.name == "kept"
    assert math.isnan(outcome.trace.gaps[0])
    assert drive(Writer(tokens=5), bounds=Bounds(max_tokens=5)).name == "improved"


def test_a_proposal_of_which_nothing_is_left_before_the_stop_sequence_is_none():
    assert drive(bounds=Bounds(stop=("Four",))).trace.stop_reason is StopReason.CONVERGED


def test_of_several_proposals_each_has_a_seed_of_its_own():
    writer = Writer()
    drive(writer, bounds=Bounds(seed=10), rounds=2, proposals=3)
    assert [asked["seed"] for asked in writer.asked] == [10, 11, 12, 13, 14, 15]


def test_the_loops_own_budget_of_seconds_is_within_the_time_limit():
    """So no round is begun that would be broken off."""
    assert [NONE.settings(LoopSection(seconds=own), 20.0).seconds for own in (None, 5.0, 60.0)] == [20.0, 5.0, 20.0]
