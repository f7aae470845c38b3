"""Margins: the replay equals the loop, and the chosen margin keeps the promise."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Preference, Prompt
from pitlm.loop.calibration import Calibration, Promise
from pitlm.loop.chains import always_accept
from pitlm.loop.loop import improve_many
from pitlm.loop.margin import MARGINS, SHOWN, Calibrated, Chains, Outcome, calibrate, items_needed

PROMPTS = [Prompt.of(f"question {number}") for number in range(200)]
ORIGINALS = ["0"] * len(PROMPTS)
ANSWERS = list(zip(PROMPTS, ORIGINALS, strict=True))


class World:
    """Proposals, gaps and qualities that look random, but are the same for the same request."""

    def draw(self, *key):
        return random.Random("|".join(map(str, key)))

    def propose(self, prompts, references, *, temperature, seed):
        made = []
        for number, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
            copies = sum(x == prompt for x in prompts[:number])
            draw = self.draw(prompt.text, reference, copies)
            text = reference if draw.random() < 0.2 else str(draw.randrange(10_000))
            made.append(Answer(text, generated_tokens=draw.randrange(1, 9)))
        return made

    def gaps(self, items):
        return [
            0.0 if i.response == i.reference else self.draw(i.prompt.text, i.reference, i.response).gauss(0.6, 1)
            for i in items
        ]

    def score(self, prompts, texts):
        return [
            self.draw(prompt.text, text).gauss(0.0 if text == "0" else 0.5, 1)
            for prompt, text in zip(prompts, texts, strict=True)
        ]


@pytest.mark.parametrize("proposals", [1, 3])
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 2.0, math.inf])
def test_a_margin_is_replayed_as_the_loop_itself_would_play(proposals, margin):
    world = World()
    settings = LoopSection(rounds=4, proposals=proposals)
    chains = Chains.of(always_accept(ANSWERS, improver=world, gap=world, settings=settings, seed=0), world.score)
    world.margin = margin
    traces = improve_many(PROMPTS, ORIGINALS, improver=world, gap=world, rounds=4, proposals=proposals)
    before = np.array(world.score(PROMPTS, ORIGINALS))
    change = np.array(world.score(PROMPTS, [trace.final for trace in traces])) - before
    replayed = chains.at(margin)
    assert (replayed.items, replayed.worse) == (200, (change < 0).sum())
    assert replayed.gain == pytest.approx(change.mean())
    assert replayed.tokens == pytest.approx(np.mean([trace.generated_tokens for trace in traces]))
    assert (margin == math.inf) == (replayed.tokens == 0)


def test_always_accept_goes_all_the_way_whatever_the_gaps():
    class Down(World):
        def gaps(self, items):
            return [-1.0] * len(items)

    traces = always_accept(ANSWERS, improver=World(), gap=Down(), settings=LoopSection(rounds=3), seed=0)
    assert {len(trace.rounds) for trace in traces} == {3}
    for trace in traces:
        incumbent = "0"
        for round_ in trace.rounds:
            assert round_.accepted == (round_.proposal != incumbent)
            incumbent = round_.proposal
        assert trace.final == incumbent
        assert trace.generated_tokens == sum(round_.tokens for round_ in trace.rounds)
    always = Chains.of(traces, World().score).at(-math.inf)
    change = np.subtract(World().score(PROMPTS, [trace.final for trace in traces]), World().score(PROMPTS, ORIGINALS))
    assert (always.worse, always.gain) == ((change < 0).sum(), pytest.approx(change.mean()))
    assert always.tokens == pytest.approx(np.mean([trace.generated_tokens for trace in traces]))


def one_round(gaps, changes):
    gaps, changes = np.array(gaps, dtype=float)[:, None], np.array(changes, dtype=float)
    return Chains(
        gaps, np.ones_like(gaps, dtype=bool), np.ones_like(gaps), np.stack([np.zeros_like(changes), changes], 1)
    )


@pytest.mark.parametrize(("items", "margin"), [(113, math.inf), (114, 0.0)])
def test_without_any_harm_it_takes_as_many_answers_as_the_arithmetic_says(items, margin):
    assert 0.98**113 > 0.1 >= 0.98**114
    assert items_needed(0.02, 0.9) == 114
    assert one_round([1.0] * items, [1.0] * items).choose(0.02, 0.9).margin == margin


def test_the_margin_shuts_out_the_harm_that_the_promise_has_no_room_for():
    """400 good proposals have gap 2, the bad ones 0.1 to 1.0. The exact test allows 3 bad of 500 at 2%, 90%."""
    bad = [0.01 * number for number in range(1, 101)]
    allowed = max(k for k in range(20) if binomtest(k, 500, 0.02, alternative="less").pvalue <= 0.1)
    chosen = one_round([2.0] * 400 + bad, [1.0] * 400 + [-1.0] * 100).choose(0.02, 0.9)
    assert chosen.worse <= allowed
    assert sum(gap > chosen.margin - 1 / 16 for gap in bad) > allowed  # the next smaller margin fails
    assert chosen.gain == pytest.approx((400 - chosen.worse) / 500)


def test_testing_stops_at_the_first_margin_that_fails_though_a_smaller_one_would_pass():
    """Later rounds can repair a bad round: at margin 1 all stop after a bad first round, at margin 0 all go on."""
    items = 300
    gaps = np.tile([1.5, 0.5], (items, 1))
    quality = np.tile([0.0, -1.0, 2.0], (items, 1))
    chains = Chains(gaps, np.ones_like(gaps, dtype=bool), np.ones_like(gaps), quality)
    assert (chains.at(0.0).harm, chains.at(1.0).harm, chains.at(2.0).harm) == (0.0, 1.0, 0.0)
    assert chains.choose(0.02, 0.9).margin == 1.5


def test_the_promise_holds_as_often_as_is_said():
    """Two rounds whose harm is not monotone in the margin. A large population gives the true harm."""
    rng = np.random.default_rng(0)

    def draw(items):
        gaps = rng.normal([1.0, 0.5], 1.0, (items, 2))
        steps = np.where(rng.random((items, 2)) < 1 / (1 + np.exp(-2.5 * gaps)), 1.0, -1.0) * rng.random((items, 2))
        quality = np.concatenate([np.zeros((items, 1)), steps.cumsum(1)], 1)
        return Chains(gaps, np.ones_like(gaps, dtype=bool), np.ones_like(gaps), quality)

    population = draw(200_000)
    truth = {margin: population.at(margin).harm for margin in {*MARGINS[::-1][:64], math.inf}}
    chosen = [draw(250).choose(0.05, 0.8).margin for _ in range(120)]
    broken = sum(truth[margin] > 0.05 for margin in chosen)
    assert binomtest(broken, len(chosen), 0.2, alternative="greater").pvalue > 0.01
    assert broken > 0  # and the margin is no larger than needed
    assert len({*chosen}) > 3


def test_equal_quality_is_no_harm():
    assert one_round([1.0] * 200, [0.0] * 200).at(0.0).worse == 0


def test_no_answers_are_bad_input():
    with pytest.raises(InputError, match="found no answers"):
        Chains.of([], World().score)


class Numbers:
    """Answers are numbers, and the larger is the better; a proposal is off by up to 3, the gap sees it with noise."""

    def propose(self, prompts, references, *, temperature, seed):
        draw = random.Random(seed)
        return [Answer(str(int(y) + draw.choice([-1, 1, 2, 3])), generated_tokens=2) for y in references]

    def gaps(self, items):
        draw = random.Random(len(items))
        return [int(item.response) - int(item.reference) + draw.gauss(0, 0.5) for item in items]


def answered(name, count):
    return [(Prompt.of(f"{name} {number}"), "0") for number in range(count)]


def pairs(chosen, rejected):
    return [Preference(Prompt.of(f"pair {number}"), str(chosen), str(rejected)) for number in range(200)]


def calibrated(items=300, held_out=150, harm=0.05, labels=None):
    sets = [answered("choosing", items), answered("held out", held_out)]
    made = calibrate(
        {"R_PIT": Numbers()},
        *sets,
        improver=Numbers(),
        settings=LoopSection(rounds=2),
        promise=Promise(harm=harm, confidence=0.9),
        pairs=labels or pairs(10, 0),
        judge="the truth",
        score=lambda prompts, texts: [float(text) for text in texts],
        seed=0,
    )
    assert set(made) == {"R_PIT"}
    return made["R_PIT"]


def test_the_margin_is_chosen_on_one_set_and_shown_on_another():
    found = calibrated()
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
    assert known.settings == LoopSection(rounds=2)
    assert len(known.gaps) == len(known.growth) == 300


def test_figures_are_plain_values_with_exact_intervals():
    row = json.loads(json.dumps(calibrated().as_dict(), allow_nan=False))
    assert {"chosen", "always", "held_out", "held_out_always", "labels", "labels_alone", "curve"} == set(row)
    harm = row["always"]["harm"]
    assert harm["estimate"] == row["always"]["worse"] / row["always"]["items"]
    assert harm["low"] < harm["estimate"] < harm["high"]


def test_too_few_answers_leave_everything_as_it_is():
    found = calibrated(items=20)
    assert math.isinf(found.calibration.margin)
    assert (found.held_out.worse, found.held_out.gain, found.held_out.tokens) == (0, 0.0, 0.0)
    assert found.as_dict()["chosen"]["margin"] is None


def test_labels_say_what_they_would_ask_for():
    right = calibrated(labels=pairs(10, 0))
    assert (right.labels.worse, right.labels_alone.margin) == (0, 0.0)
    assert 0.3 < right.labels.gain < 0.7  # about half of the pairs have the better one as the proposal
    wrong = calibrated(labels=pairs(0, 10))  # the labeller likes what the scorer does not
    assert wrong.labels.harm == pytest.approx(1 - right.labels.gain)  # those whose proposal is the other one
    assert wrong.labels_alone.margin > 9


def found(margin, items, labels_alone=1.25):
    known = Calibration("R_PIT", margin, 0.02, 0.9, items, "truth", LoopSection(), (), ())
    one = Outcome(margin, items, 1, 0.5, 10.0)
    labels = Outcome(margin, 200, 3, 0.5, 0.0)
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
    assert found(margin, items).sentences()[0].startswith(expected)


def test_what_labels_say():
    assert "On 200 held-out pairs" in found(0.5, 500).sentences()[1]
    assert found(0.5, 500).sentences()[1].endswith("find 1.5% made worse; the labels by themselves would ask for 1.25.")
    assert found(0.5, 500, math.inf).sentences()[1].endswith("no margin would do by them.")


def test_the_smallest_promise_needs_a_finite_number_of_answers():
    assert items_needed(1e-17, 0.9) == pytest.approx(2.302585e17, rel=1e-6)
    assert items_needed(0.02, 0.9) == 114  # 0.98^114 is 0.0999, and 0.98^113 is 0.102
