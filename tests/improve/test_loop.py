"""The loop with a scripted proposer and scorer: what is kept, and why it stops."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Prompt, StopReason
from pitlm.improve.loop import improve, improve_many


@dataclass
class Script:
    """Proposes each reference's successor and remembers every call."""

    steps: dict[str, str]
    calls: list[dict] = field(default_factory=list)

    def propose(self, prompts, references, *, temperature, seed):
        self.calls.append({"references": list(references), "temperature": temperature, "seed": seed})
        return [Answer(self.steps[y], generated_tokens=len(self.steps[y]), prompt_tokens=10) for y in references]


class Values:
    """gap = value of the response minus value of the reference."""

    def __init__(self, **values: float) -> None:
        self.values = values

    def gaps(self, items):
        return torch.tensor([self.values[item.response] - self.values[item.reference] for item in items])


def run(steps, values, **kwargs):
    script = Script(steps)
    return improve("x", "a", improver=script, gap=Values(**values), **kwargs), script


def test_each_accepted_proposal_is_the_next_reference_until_the_rounds_are_spent():
    trace, script = run({"a": "bb", "bb": "ccc", "ccc": "d"}, {"a": 0, "bb": 1, "ccc": 3, "d": 9}, rounds=2)
    assert trace.responses == ("a", "bb", "ccc")
    assert trace.gaps == (1.0, 2.0)
    assert trace.stop_reason is StopReason.ROUNDS
    assert [call["references"] for call in script.calls] == [["a"], ["bb"]]


def test_a_worse_proposal_ends_the_loop_and_the_best_is_kept():
    trace, script = run({"a": "b", "b": "c"}, {"a": 0, "b": 2, "c": 1}, rounds=5)
    assert (trace.final, trace.stop_reason) == ("b", StopReason.NO_GAIN)
    assert [r.accepted for r in trace.rounds] == [True, False]
    assert len(script.calls) == 2


@pytest.mark.parametrize(("margin", "accepted"), [(0.0, True), (0.49, True), (0.5, False), (0.6, False)])
def test_a_gap_must_be_above_the_margin(margin, accepted):
    trace, _ = run({"a": "b"}, {"a": 0.0, "b": 0.5}, rounds=1, margin=margin)
    assert (trace.final == "b") is accepted
    assert trace.stop_reason is (StopReason.ROUNDS if accepted else StopReason.NO_GAIN)


def test_no_gain_at_margin_zero_is_no_improvement():
    trace, _ = run({"a": "b"}, {"a": 0.0, "b": 0.0}, rounds=3)
    assert (trace.final, trace.stop_reason) == ("a", StopReason.NO_GAIN)


def test_the_same_text_again_is_convergence():
    trace, script = run({"a": "b", "b": "b"}, {"a": 0, "b": 1}, rounds=5)
    assert (trace.final, trace.stop_reason) == ("b", StopReason.CONVERGED)
    assert len(trace.rounds) == len(script.calls) == 2


def test_a_scorer_that_is_not_zero_for_no_change_cannot_make_the_loop_accept_the_same_text():
    class Liar:
        def gaps(self, items):
            return torch.ones(len(items))

    trace = improve("x", "a", improver=Script({"a": "a"}), gap=Liar(), rounds=3)
    assert (trace.responses, trace.stop_reason) == (("a",), StopReason.CONVERGED)


def test_not_a_number_is_never_accepted():
    trace, _ = run({"a": "b"}, {"a": 0, "b": float("nan")})
    assert (trace.final, trace.stop_reason) == ("a", StopReason.NO_GAIN)


def test_tokens_of_all_proposals_count_accepted_or_not():
    trace, _ = run({"a": "bb", "bb": "ccc"}, {"a": 0, "bb": 1, "ccc": 0}, rounds=5)
    assert (trace.generated_tokens, trace.prompt_tokens) == (2 + 3, 20)


def test_each_round_has_its_own_seed_and_the_wanted_temperature():
    _, script = run({"a": "b", "b": "c", "c": "d"}, {"a": 0, "b": 1, "c": 2, "d": 3}, rounds=3, seed=7, temperature=0.6)
    assert len({call["seed"] for call in script.calls}) == 3
    _, again = run({"a": "b", "b": "c", "c": "d"}, {"a": 0, "b": 1, "c": 2, "d": 3}, rounds=3, seed=7)
    assert [call["seed"] for call in again.calls] == [call["seed"] for call in script.calls]
    assert {call["temperature"] for call in script.calls} == {0.6}


def test_finished_responses_are_not_proposed_for_again():
    script = Script({"a": "b", "b": "c", "c": "d", "p": "q", "s": "s"})
    values = Values(a=0, b=1, c=2, d=0, p=0, q=-1, s=0)
    finished: list[int] = []
    prompts = [Prompt.of(name) for name in ("one", "two", "three")]
    traces = improve_many(prompts, ["a", "p", "s"], improver=script, gap=values, rounds=3, advance=finished.append)
    assert [call["references"] for call in script.calls] == [["a", "p", "s"], ["b"], ["c"]]
    assert [trace.final for trace in traces] == ["c", "p", "s"]
    assert [trace.stop_reason for trace in traces] == [StopReason.NO_GAIN, StopReason.NO_GAIN, StopReason.CONVERGED]
    assert [trace.prompt.text for trace in traces] == ["one", "two", "three"]
    assert finished == [2, 0, 1]


def test_many_responses_together_are_each_improved_as_if_alone():
    steps = {"a": "b", "b": "c", "c": "d", "p": "q", "q": "q"}
    values = {"a": 0, "b": 1, "c": 2, "d": 3, "p": 0, "q": 1}
    x = Prompt.of("x")
    together = improve_many([x, x], ["a", "p"], improver=Script(steps), gap=Values(**values))
    alone = [improve(x, y, improver=Script(steps), gap=Values(**values)) for y in ("a", "p")]
    assert together == alone


def test_nothing_to_improve_is_no_error():
    assert improve_many([], [], improver=Script({}), gap=Values()) == []


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"rounds": 0}, "rounds: found 0"), ({"margin": -0.1}, "margin: found -0.1")]
)
def test_impossible_settings_are_refused(kwargs, message):
    with pytest.raises(InputError, match=message):
        run({"a": "b"}, {"a": 0, "b": 1}, **kwargs)


def test_one_response_per_prompt():
    with pytest.raises(ValueError, match="zip"):
        improve_many([Prompt.of("x")], ["a", "b"], improver=Script({}), gap=Values())
