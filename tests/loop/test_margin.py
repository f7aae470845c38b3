"""Margins: the replay equals the loop, and the chosen margin keeps the promise."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import binomtest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Prompt
from pitlm.core.recipe import LoopSection
from pitlm.loop.chains import always_accept
from pitlm.loop.loop import improve_many
from pitlm.loop.margin import MARGINS, Chains, items_needed

PROMPTS = [Prompt.of(f"question {number}") for number in range(200)]
ORIGINALS = ["0"] * len(PROMPTS)


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
    chains = Chains.of(
        always_accept(PROMPTS, ORIGINALS, improver=world, gap=world, settings=settings, seed=0), world.score
    )
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

    traces = always_accept(PROMPTS, ORIGINALS, improver=World(), gap=Down(), settings=LoopSection(rounds=3), seed=0)
    assert {len(trace.rounds) for trace in traces} == {3}
    for trace in traces:
        incumbent = "0"
        for round_ in trace.rounds:
            assert round_.accepted == (round_.proposal != incumbent)
            incumbent = round_.proposal
        assert trace.final == incumbent
        assert trace.generated_tokens == sum(round_.tokens for round_ in trace.rounds)
    always = Chains.of(traces, World().score).always()
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
