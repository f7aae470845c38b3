"""Baselines that sample new answers, with scripted models: the kept answer, and the full cost."""

from __future__ import annotations

import torch

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt, StopReason
from pitlm.loop.baselines.own_baselines import pick, resample
from pitlm.loop.systems import Systems, TrainedModels

PROMPTS = [Prompt.of("one"), Prompt.of("two"), Prompt.of("three")]
ORIGINALS = [f"{prompt.text}-0" for prompt in PROMPTS]


class Policy:
    """The n-th answer to x is "x-n" and takes n tokens."""

    def __init__(self):
        self.calls = []

    def answer(self, prompts, *, temperature, seed, advance=None):
        self.calls.append(([prompt.text for prompt in prompts], temperature, seed))
        number = len(self.calls)
        return [Answer(f"{prompt.text}-{number}", generated_tokens=number, prompt_tokens=100) for prompt in prompts]


class Gaps:
    """A table of scores. It checks that each response comes with its own prompt and original."""

    SCORES = {
        "one-0": 5.0, "one-1": 1.0, "one-2": 2.0,
        "two-0": 0.0, "two-1": 3.0, "two-2": 2.0,
        "three-0": 0.0, "three-1": 1.0, "three-2": 4.0,
    }  # fmt: skip

    def gaps(self, items):
        assert all(item.reference == f"{item.prompt.text}-0" for item in items)
        assert all(item.response.startswith(item.prompt.text + "-") for item in items)
        return torch.tensor([self.SCORES[item.response] - self.SCORES[item.reference] for item in items])


def draw(policy, samples, tokens=None, prompts=PROMPTS):
    models = TrainedModels(policy, None, None, Gaps(), None)
    systems = Systems(prompts, [], models, LoopSection(), 0.9, lambda purpose: 5, tokens)
    return systems.draw("further answers", policy, samples)


def run(samples, policy=None):
    return pick(PROMPTS, ORIGINALS, draw(policy or Policy(), samples), gap=Gaps())


def test_the_highest_score_wins_and_the_original_takes_part():
    assert [trace.final for trace in run(2)] == ["one-0", "two-1", "three-2"]
    assert [trace.final for trace in run(1)] == ["one-0", "two-1", "three-1"]


def test_each_sample_is_a_round_with_its_gap_to_the_best_before_it():
    one, two, three = run(2)
    assert (one.gaps, two.gaps, three.gaps) == ((-4.0, -3.0), (3.0, -1.0), (1.0, 3.0))
    assert [step.accepted for step in three.rounds] == [True, True]
    assert {trace.stop_reason for trace in (one, two, three)} == {StopReason.ROUNDS}


def test_all_samples_are_paid_for_whichever_wins():
    assert {(trace.generated_tokens, trace.prompt_tokens) for trace in run(2)} == {(1 + 2, 200)}


def test_samples_have_seeds_of_their_own():
    policy = Policy()
    run(2, policy)
    assert len({seed for _, _, seed in policy.calls}) == 2
    assert {temperature for _, temperature, _ in policy.calls} == {0.9}


def test_a_score_that_is_no_number_is_never_the_best():
    class Broken:
        def gaps(self, items):
            return torch.tensor([float("nan"), 1.0])

    (trace,) = pick([PROMPTS[0]], ["one-0"], [[Answer("one-1"), Answer("one-2")]], gap=Broken())
    assert trace.final == "one-2"


def test_resampling_takes_one_answer_unseen_and_pays_for_one():
    drawn = draw(Policy(), 2)
    traces = resample(PROMPTS, ORIGINALS, drawn)
    assert [trace.final for trace in traces] == ["one-1", "two-1", "three-1"]
    assert {trace.generated_tokens for trace in traces} == {1}


def test_under_a_budget_samples_are_drawn_until_it_is_spent():
    class Uneven(Policy):
        def answer(self, prompts, **kwargs):
            answers = super().answer(prompts, **kwargs)
            return [Answer(a.text, generated_tokens=6 if a.text.startswith("one") else 2) for a in answers]

    policy = Uneven()
    drawn = draw(policy, 99, tokens=5, prompts=PROMPTS[:2])
    assert [[answer.generated_tokens for answer in own] for own in drawn] == [[6], [2, 2, 2]]
    assert [asked for asked, _, _ in policy.calls] == [["one", "two"], ["two"], ["two"]]


def test_nothing_drawn_leaves_the_original():
    (trace,) = pick([PROMPTS[0]], ["one-0"], [[]], gap=Gaps())
    assert (trace.final, trace.generated_tokens) == ("one-0", 0)
