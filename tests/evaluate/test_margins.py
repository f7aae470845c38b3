"""A margin for one scorer: the answers that choose it, the answers that test it, and the labels."""

from __future__ import annotations

import json
import math
import random

import pytest

from pitlm.core.nouns import Answer, Preference, Prompt
from pitlm.core.recipe import LoopSection
from pitlm.evaluate.margins import SHOWN, Answered, Promise, calibrate, play, rounds_to_play
from pitlm.judge.scores import ScoreJudge

SETTINGS = LoopSection(rounds=2)


class World:
    """Answers are numbers; larger is better. A proposal differs by up to 3; the gap is the difference plus noise."""

    def propose(self, prompts, references, *, temperature, seed):
        draw = random.Random(seed)
        return [Answer(str(int(y) + draw.choice([-1, 1, 2, 3])), generated_tokens=2) for y in references]

    def gaps(self, items):
        draw = random.Random(len(items))
        return [int(item.response) - int(item.reference) + draw.gauss(0, 0.5) for item in items]


JUDGE = ScoreJudge("the truth", lambda prompts, texts: [float(text) for text in texts])


def answered(name, count):
    return Answered([Prompt.of(f"{name} {number}") for number in range(count)], ["0"] * count)


def pairs(chosen, rejected):
    return [Preference(Prompt.of(f"pair {number}"), str(chosen), str(rejected)) for number in range(200)]


def run(items=300, held_out=150, harm=0.05, labels=None):
    sets = [answered("choosing", items), answered("held out", held_out)]
    choosing, shown = play({"R_PIT": World()}, sets, improver=World(), settings=SETTINGS, seed=0)["R_PIT"]
    return calibrate(
        "R_PIT",
        World(),
        choosing=choosing,
        held_out=shown,
        settings=SETTINGS,
        promise=Promise(harm, 0.9),
        pairs=labels or pairs(10, 0),
        judge=JUDGE,
    )


@pytest.mark.parametrize("proposals", [1, 2])
def test_several_scorers_share_what_is_played_where_none_of_them_chooses(proposals):
    class Sure(World):
        def gaps(self, items):
            return [int(item.response) - int(item.reference) for item in items]

    class Contrary(Sure):
        def gaps(self, items):
            return [-gap for gap in super().gaps(items)]

    class Counting(World):
        calls = 0

        def propose(self, *asked, **sampling):
            self.calls += 1
            return super().propose(*asked, **sampling)

    settings, sets = LoopSection(rounds=2, proposals=proposals), [answered("one", 30), answered("two", 20)]
    scorers, improver, steps = {"one": Sure(), "two": Contrary()}, Counting(), []
    played = play(scorers, sets, improver=improver, settings=settings, seed=0, advance=steps.append)
    assert improver.calls == 4 * proposals
    assert sum(steps) == rounds_to_play(2, sets, settings) == 100 * proposals
    for name, scorer in scorers.items():
        assert played[name] == play({name: scorer}, sets, improver=World(), settings=settings, seed=0)[name]
    one, two = (played[name][0][0] for name in scorers)
    assert (one.responses == two.responses) == (proposals == 1)
    assert (one.gaps == tuple(-gap for gap in two.gaps)) == (proposals == 1)


def test_the_margin_is_chosen_on_one_set_and_shown_on_another():
    found = run()
    assert (found.chosen.items, found.held_out.items) == (300, 150)
    assert 0 <= found.calibration.margin < 3
    assert found.chosen.margin == found.held_out.margin == found.labels.margin == found.calibration.margin
    assert found.chosen.harm < 0.05 < found.always.harm
    assert found.always.tokens == 4
    assert found.chosen.tokens < found.always.tokens
    assert [outcome.margin for outcome in found.curve] == list(SHOWN)
    known = found.calibration
    assert (known.scorer, known.harm, known.confidence, known.items, known.judge) == (
        "R_PIT",
        0.05,
        0.9,
        300,
        "the truth",
    )
    assert known.settings == SETTINGS
    assert len(known.gaps) == len(known.growth) == 300


def test_figures_are_plain_values_with_exact_intervals():
    row = json.loads(json.dumps(run().as_dict(), allow_nan=False))
    assert {"chosen", "always", "held_out", "held_out_always", "labels", "labels_alone", "curve"} == set(row)
    harm = row["always"]["harm"]
    assert harm["estimate"] == row["always"]["worse"] / row["always"]["items"]
    assert harm["low"] < harm["estimate"] < harm["high"]


def test_too_few_answers_leave_everything_as_it_is():
    found = run(items=20)
    assert math.isinf(found.calibration.margin)
    assert (found.held_out.worse, found.held_out.gain, found.held_out.tokens) == (0, 0.0, 0.0)
    assert found.as_dict()["chosen"]["margin"] is None


def test_labels_say_what_they_would_ask_for():
    right = run(labels=pairs(10, 0))
    assert (right.labels.worse, right.labels_alone.margin) == (0, 0.0)
    assert 0.3 < right.labels.gain < 0.7  # in about half of the pairs the better answer is the proposal
    wrong = run(labels=pairs(0, 10))  # the labels contradict the scorer
    assert wrong.labels.harm == pytest.approx(1 - right.labels.gain)  # pairs whose proposal is the rejected answer
    assert wrong.labels_alone.margin > 9
