"""Every system of a comparison, with scripted models: the inputs of each, and one budget for all."""

from __future__ import annotations

import math

import pytest
import torch

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt
from pitlm.loop.baselines import own_baselines
from pitlm.loop.baselines.baseline import PIT, PIT_ONE, SFT
from pitlm.loop.systems import Systems, TrainedModels, answer_of

PROMPTS = [Prompt.of("one"), Prompt.of("two")]
ORIGINALS = [Answer("a", 4), Answer("b", 4)]
BASELINES = [
    own_baselines.RESAMPLE,
    own_baselines.BEST_OF_N,
    own_baselines.BEST_OF_N_GAP,
    own_baselines.SFT_ONCE,
    own_baselines.SFT_LOOP,
    own_baselines.REWARD_DIFFERENCE,
    own_baselines.ONE_ROUND,
]


class Policy:
    def __init__(self, mark):
        self.mark, self.calls = mark, []

    def answer(self, prompts, *, temperature, seed, advance=None):
        self.calls.append((len(prompts), temperature, seed))
        return [Answer(f"{self.mark}{len(self.calls)}", 4, 9) for _ in prompts]


class Improver:
    """Adds a mark; each proposal takes 5 tokens."""

    def __init__(self, mark):
        self.mark, self.seeds = mark, []

    def propose(self, prompts, references, *, temperature, seed):
        assert temperature == 0.4
        self.seeds.append(seed)
        return [Answer(y + self.mark, 5, 9) for y in references]


class Gap:
    """Prefers longer answers, up to three letters."""

    def gaps(self, items):
        return torch.tensor([float(min(3, len(i.response)) - len(i.reference)) for i in items])


class Reward:
    """R_P scores only the letter p."""

    def raw(self, items):
        return torch.tensor([float(item.response.count("p")) for item in items])


def make(tokens=None, before=None):
    models = TrainedModels(Policy("p"), Improver("+"), Improver("-"), Gap(), Reward(), before)
    seeds = {}
    loop = LoopSection(rounds=3)
    return Systems(PROMPTS, ORIGINALS, models, loop, 0.9, lambda name: seeds.setdefault(name, 100 * len(seeds)), tokens)


def finals(traces):
    return {name: [trace.final for trace in own] for name, own in traces.items()}


def test_each_system_does_what_its_name_says():
    made = make()
    traces = made.traces(BASELINES)
    assert finals(traces) == {
        own_baselines.RESAMPLE.title: ["p1", "p1"],
        own_baselines.BEST_OF_N.title: ["p1", "p1"],
        own_baselines.BEST_OF_N_GAP.title: ["p1", "p1"],
        SFT: ["a-", "b-"],
        own_baselines.SFT_LOOP.title: ["a--", "b--"],
        own_baselines.REWARD_DIFFERENCE.title: ["a", "b"],  # R_P sees no gain in the improver's marks
        PIT_ONE: ["a+", "b+"],
        PIT: ["a++", "b++"],
    }
    assert [trace.final for trace in made.chains[PIT]] == ["a+++", "b+++"]  # no stop rule


def test_a_margin_that_is_stored_beside_the_gap_model_is_none_of_the_runs_settings():
    made = make()
    made.models.gap.margin = math.inf  # nothing would be accepted
    assert [trace.final for trace in made.pit] == ["a++", "b++"]


def test_best_of_n_has_as_many_samples_as_cost_what_pit_costs():
    made = make()
    # Three rounds of 5 tokens, the last rejected, against 4 tokens for an answer.
    assert made.samples == (pytest.approx(15 / 4), 4)
    spent = {name: {answer_of(trace).generated_tokens for trace in own} for name, own in made.traces(BASELINES).items()}
    assert (spent[PIT], spent[own_baselines.BEST_OF_N.title], spent[own_baselines.BEST_OF_N_GAP.title]) == (
        {15},
        {16},
        {16},
    )
    assert (spent[own_baselines.RESAMPLE.title], spent[PIT_ONE], spent[own_baselines.REWARD_DIFFERENCE.title]) == (
        {4},
        {5},
        {5},
    )
    assert [calls for calls, *_ in made.models.policy.calls] == [2] * 4  # drawn once for all three


@pytest.mark.parametrize("tokens", [3, 8, 11, 40])
def test_a_budget_holds_every_system(tokens):
    traces = make(tokens).traces(BASELINES)
    for own in traces.values():
        assert all(trace.generated_tokens <= tokens for trace in own)
    rounds = {3: 0, 8: 1, 11: 2, 40: 2}[tokens]
    assert [trace.final for trace in traces[PIT]] == ["a" + "+" * rounds, "b" + "+" * rounds]
    # Best-of-N spends the whole budget, whatever PIT spends.
    assert len(traces[own_baselines.BEST_OF_N.title][0].rounds) == tokens // 4


def test_pit_goes_on_from_the_answers_of_the_policy_after_rlhf():
    after = Policy("q")
    both = [own_baselines.AFTER_RLHF, own_baselines.PIT_AFTER_RLHF]
    traces = make(before=after).traces([*both, *BASELINES])
    assert finals(traces)["policy after RLHF"] == ["q1", "q1"]
    assert finals(traces)["PIT on the policy after RLHF"] == ["q2+", "q2+"]
    [trace, _] = traces["PIT on the policy after RLHF"]
    assert (trace.original, trace.rounds[0].proposal) == ("a", "q2")
    assert trace.generated_tokens == 4 + sum(step.tokens for step in trace.rounds[1:])


def test_the_policy_before_rlhf_is_a_system_where_there_was_rlhf():
    before = Policy("q")
    traces = make(before=before).traces([own_baselines.BEFORE_RLHF, *BASELINES])
    assert finals(traces)[own_baselines.BEFORE_RLHF.title] == ["q1", "q1"]
    assert before.calls == [(2, 0.9, before.calls[0][2])]


@pytest.mark.parametrize("tokens", [None, 12])
def test_an_interrupted_comparison_goes_on_and_says_the_same(tmp_path, tokens):
    whole = make(tokens).traces(BASELINES)
    begun = make(tokens)
    begun.folder = tmp_path
    begun.models.reward.raw = None  # the system that needs R_P fails, after others are done
    with pytest.raises(TypeError):
        begun.traces([own_baselines.SFT_ONCE, own_baselines.SFT_LOOP, own_baselines.REWARD_DIFFERENCE])
    again = make(tokens)
    again.folder = tmp_path
    assert again.traces(BASELINES) == whole
    assert begun.models.corrector.seeds
    assert not again.models.corrector.seeds  # both systems of the SFT-only improver were kept
