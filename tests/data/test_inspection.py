"""Figures computed by hand on a few pairs."""

from __future__ import annotations

import json
import math

import pytest

from pitlm.core.nouns import Message, Preference, Prompt
from pitlm.data.dataset import Loaded
from pitlm.data.inspection import inspect_preferences, pick_samples

ASKED = Prompt.of("one two three")
TALK = Prompt((Message("system", "s"), Message("user", "a b"), Message("assistant", "c"), Message("user", "d")))
LOADED = Loaded(
    [
        Preference(ASKED, "w w w w", "w"),  # the longer wins
        Preference(ASKED, "w w w w", "w"),  # a duplicate of it
        Preference(ASKED, "w", "w w w w"),  # contradicts it: the shorter wins
        Preference(TALK, "x y", "y\n  x"),  # two words each
    ],
    read=9,
    dropped={"equal responses": 2, "prompts differ": 1},
    invalid=2,
)


def test_counts() -> None:
    found = inspect_preferences(LOADED)
    assert (found["read"], found["kept"], found["invalid"], found["equal_responses"]) == (9, 4, 2, 2)
    assert found["dropped"] == {"equal responses": 2, "prompts differ": 1}
    assert (found["distinct_prompts"], found["repeated_prompts"]) == (2, 2)
    assert (found["duplicates"], found["contradictions"]) == (1, 1)
    assert (found["turns"], found["with_system"]) == ({1: 3, 2: 1}, 1)


def test_lengths_are_in_words() -> None:
    found = inspect_preferences(LOADED)
    # prompts of 3, 3, 3 and 5 words; chosen of 4, 4, 1 and 2, so that the median is 3
    assert found["prompt_length"]["mean"] == 3.5
    assert found["prompt_length"]["longest"] == 5
    assert found["chosen_length"]["quantiles"]["50%"] == 3.0
    assert found["chosen_length"]["mean"] == 2.75
    assert found["chosen_length"]["unit"] == "words"


def wilson(wins: int, count: int) -> tuple[float, float]:
    """Wilson's interval from its textbook formula, z for 95%."""
    z, share = 1.959963984540054, wins / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def test_length_bias() -> None:
    bias = inspect_preferences(LOADED)["length_bias"]
    assert (bias["longer_won"], bias["unequal"], bias["same_length"]) == (2, 3, 1)
    assert bias["share"] == pytest.approx(2 / 3)
    assert bias["interval_95"] == pytest.approx(wilson(2, 3))


def test_swapping_every_pair_mirrors_the_length_bias() -> None:
    swapped = Loaded([Preference(pair.prompt, pair.rejected, pair.chosen) for pair in LOADED.preferences], read=4)
    before, after = inspect_preferences(LOADED)["length_bias"], inspect_preferences(swapped)["length_bias"]
    assert None not in (before["share"], before["interval_95"], after["interval_95"])
    assert after["share"] == pytest.approx(1 - before["share"])
    assert after["interval_95"] == pytest.approx((1 - before["interval_95"][1], 1 - before["interval_95"][0]))


def test_no_pair_of_unequal_length_has_no_bias() -> None:
    bias = inspect_preferences(Loaded([Preference(ASKED, "a", "b")], read=1))["length_bias"]
    assert (bias["share"], bias["interval_95"], bias["same_length"]) == (None, None, 1)


def test_samples_do_not_depend_on_the_order() -> None:
    pairs = [Preference(Prompt.of(f"p {number}"), "a", "b") for number in range(20)]
    one = pick_samples(pairs, 4)
    assert len(one) == 4
    assert pick_samples(pairs[::-1], 4) == one


def test_figures_are_json_and_holds_no_texts() -> None:
    text = json.dumps(inspect_preferences(LOADED), allow_nan=False)
    assert "one two three" not in text
    assert json.loads(text)["length_bias"]["interval_95"] == pytest.approx(wilson(2, 3))
