"""Self-Refine's published logs, replayed under the loop: the calls that the stop rule saves, and the answers it
keeps."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections import defaultdict
from pathlib import Path

import pytest

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt
from pitlm.loop.loop import Loop

LOGS = Path(__file__).parents[3] / "shared" / "data" / "selfrefine-yelp" / "selfrefine_yelp.jsonl.gz"
LEVELS = ("very negative", "negative", "neutral", "positive", "very positive")
TARGET = len(LEVELS) - 1


def level(verdict: str) -> float:
    """Read how positive the logs' own judge found a review; NaN for any other reply."""
    found = re.search(r"(very positive|very negative|positive|negative|neutral)\W*$", verdict.lower())
    return LEVELS.index(found[1]) if found else math.nan


@pytest.fixture(scope="module")
def records():
    """Return the levels of each record's attempts by GPT-4, in order."""
    if not LOGS.is_file():
        pytest.skip("Self-Refine's logs are not here")
    found = defaultdict(dict)
    with gzip.open(LOGS, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["model"] == "gpt4":
                found[row["record_id"]][row["attempt"]] = level(row["transferred_review_sentiment"])
    return [[attempts[number] for number in sorted(attempts)] for attempts in found.values()]


def test_what_the_logs_show(records):
    """86% of the refinement calls came after the target was reached; a tenth of the records that reached it left it
    again."""
    calls = sum(len(levels) - 1 for levels in records)
    reached = [levels for levels in records if TARGET in levels]
    late = sum(len(levels) - 1 - levels.index(TARGET) for levels in reached)
    left = sum(levels[-1] < TARGET for levels in reached)
    assert (calls, late, len(reached), left) == (1869, 1611, 481, 52)
    assert (round(late / calls, 2), round(left / len(reached), 2)) == (0.86, 0.11)


def test_the_loop_ends_one_call_after_the_target_and_never_leaves_it(records):
    calls = late = ended_there = 0
    for levels in records:
        if len(levels) < 2 or math.isnan(levels[0]):
            continue
        loop = Loop(Prompt.of("a review"), "0", LoopSection(rounds=len(levels) - 1), margin=0.0)
        while loop.begin_round():
            number, reference = len(loop.rounds) + 1, levels[int(loop.best)]
            loop.take([Answer(str(number))], [levels[number] - reference])
            calls += 1
            late += reference == TARGET
        played = levels[: len(loop.rounds) + 1]
        final = levels[int(loop.trace().final)]
        assert final == max(value for value in played if not math.isnan(value))  # the loop keeps the best so far
        ended_there += final == TARGET
        assert TARGET not in played or final == TARGET
    # The logs: 1869 calls, 376 end at the target. The loop gives up on 21 that would have reached it after a
    # standstill.
    assert sum(levels[-1] == TARGET for levels in records) == 376
    assert (calls, late, ended_there) == (654, 458, 460)
