"""The loop with a scripted proposer and scorer: which answers it keeps, and why it stops."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt, StopReason, Trace
from pitlm.loop.loop import Loop, improve, improve_many


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
    assert (trace.final, trace.stop_reason) == ("b", StopReason.ACCEPTED_NONE)
    assert [r.accepted for r in trace.rounds] == [True, False]
    assert len(script.calls) == 2


@pytest.mark.parametrize(("margin", "accepted"), [(0.0, True), (0.49, True), (0.5, False), (0.6, False)])
def test_a_gap_must_be_above_the_margin(margin, accepted):
    trace, _ = run({"a": "b"}, {"a": 0.0, "b": 0.5}, rounds=1, margin=margin)
    assert (trace.final == "b") is accepted
    assert trace.stop_reason is (StopReason.ROUNDS if accepted else StopReason.ACCEPTED_NONE)


def test_no_gain_at_margin_zero_is_no_improvement():
    trace, _ = run({"a": "b"}, {"a": 0.0, "b": 0.0}, rounds=3)
    assert (trace.final, trace.stop_reason) == ("a", StopReason.ACCEPTED_NONE)


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
    assert (trace.final, trace.stop_reason) == ("a", StopReason.ACCEPTED_NONE)


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
    assert [trace.stop_reason for trace in traces] == [
        StopReason.ACCEPTED_NONE,
        StopReason.ACCEPTED_NONE,
        StopReason.CONVERGED,
    ]
    assert [trace.prompt.text for trace in traces] == ["one", "two", "three"]
    assert finished == [2, 1]


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
    ("kwargs", "message"),
    [
        ({"rounds": 0}, "rounds: found 0"),
        ({"margin": -0.1}, "margin: found -0.1"),
        ({"tokens": 0}, "tokens: found 0"),
        ({"retries": 3}, "unknown key 'retries'; expected one of rounds"),
    ],
)
def test_impossible_settings_are_refused(kwargs, message):
    with pytest.raises(InputError, match=message):
        run({"a": "b"}, {"a": 0, "b": 1}, **kwargs)


def test_one_response_per_prompt():
    with pytest.raises(ValueError, match="zip"):
        improve_many([Prompt.of("x")], ["a", "b"], improver=Script({}), gap=Values())


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self):
        return self.now


def started(clock=None, **settings):
    margin = settings.pop("margin", 0.0)
    loop = Loop(Prompt.of("x"), "a", LoopSection(**settings), margin=margin, clock=clock or Clock())
    assert loop.begin_round()
    return loop


def test_a_loop_has_its_reference_and_ends_with_a_trace():
    loop = started(proposals=2, rounds=2)
    assert (loop.prompt, loop.best, loop.rounds) == (Prompt.of("x"), "a", [])
    assert loop.begin_round()  # asking twice changes nothing
    assert (loop.best, loop.rounds) == ("a", [])
    with pytest.raises(ValueError, match="has not ended"):
        loop.trace()
    loop.take([Answer("b", 3, 10, 0.5), Answer("c", 4, 10, 0.25)], [1.0, 2.0])
    assert loop.begin_round()
    assert (loop.best, len(loop.rounds)) == ("c", 1)
    loop.take([Answer("d", 1), Answer("c", 1)], [-1.0, 0.0])
    assert not loop.begin_round()
    trace = loop.trace()
    assert (trace.final, trace.stop_reason, trace.cost) == ("c", StopReason.ACCEPTED_NONE, 0.75)
    assert (trace.generated_tokens, trace.prompt_tokens) == (9, 20)
    assert [(r.proposal, r.gap, r.gaps, r.tokens) for r in trace.rounds] == [
        ("c", 2.0, (1.0, 2.0), 7),
        ("d", -1.0, (-1.0, 0.0), 2),
    ]
    assert Trace.from_dict(trace.as_dict()) == trace
    with pytest.raises(ValueError, match="has ended"):
        loop.take([Answer("e")], [1.0])


@pytest.mark.parametrize(
    ("texts", "gaps", "kept", "reason"),
    [
        ("bc", [1.0, 3.0], "c", StopReason.ROUNDS),
        ("bc", [3.0, 1.0], "b", StopReason.ROUNDS),
        ("bc", [float("nan"), 1.0], "c", StopReason.ROUNDS),
        ("bc", [0.0, -1.0], "a", StopReason.ACCEPTED_NONE),
        ("ab", [9.0, 1.0], "b", StopReason.ROUNDS),  # the score of an unchanged text does not count
        ("ab", [0.0, -1.0], "a", StopReason.ACCEPTED_NONE),
        ("aa", [0.0, 0.0], "a", StopReason.CONVERGED),
    ],
)
def test_the_best_of_several_proposals_is_the_one_that_may_be_kept(texts, gaps, kept, reason):
    loop = started(proposals=2, rounds=1)
    loop.take([Answer(text) for text in texts], gaps)
    assert not loop.begin_round()
    assert (loop.trace().final, loop.trace().stop_reason) == (kept, reason)


@pytest.mark.parametrize(
    ("budget", "spent", "rounds"),
    [
        ({"tokens": 30}, Answer("", 10), 3),  # exactly the budget
        ({"tokens": 29}, Answer("", 10), 2),  # a third round would exceed the budget
        ({"tokens": 1}, Answer("", 10), 1),  # the first round always runs
        ({"cost": 0.5}, Answer("", cost=0.25), 2),
        ({"seconds": 25.0}, Answer(""), 2),
    ],
)
def test_no_round_is_begun_that_would_go_over_a_budget(budget, spent, rounds):
    clock = Clock()
    loop = started(clock, rounds=9, **budget)
    for text in "bcdefgh":
        clock.now += 10
        loop.take([Answer(text, spent.generated_tokens, cost=spent.cost)], [1.0])
        if not loop.begin_round():
            break
    trace = loop.trace()
    assert (len(trace.rounds), trace.stop_reason) == (rounds, StopReason(next(iter(budget))))
    assert trace.final == "abcdefgh"[rounds]


def test_the_dearest_round_is_what_the_next_one_is_expected_to_take():
    loop = started(rounds=9, tokens=125)
    for text, tokens in (("b", 60), ("c", 10)):
        loop.take([Answer(text, tokens)], [1.0])
        ended = not loop.begin_round()
    assert ended
    assert (loop.trace().stop_reason, loop.trace().final) == (StopReason.TOKENS, "c")


def test_waiting_counts_against_the_seconds_once_the_first_round_has_begun():
    clock = Clock()
    loop = Loop(Prompt.of("x"), "a", LoopSection(seconds=5.0), margin=0.0, clock=clock)
    clock.now += 60
    assert loop.begin_round()
    loop.take([Answer("b")], [1.0])
    clock.now += 6
    assert not loop.begin_round()
    assert loop.trace().stop_reason is StopReason.SECONDS


def test_a_cancelled_loop_keeps_the_best_so_far():
    loop = started()
    loop.take([Answer("b", 5)], [1.0])
    loop.stop()
    assert not loop.begin_round()
    assert (loop.trace().final, loop.trace().stop_reason) == ("b", StopReason.CANCELLED)
    loop.stop(StopReason.COST)  # too late: the reason stays
    assert loop.trace().stop_reason is StopReason.CANCELLED


def test_proposals_and_gaps_go_together():
    loop = started(proposals=2)
    for proposals, gaps in (([], []), ([Answer("b")], [1.0, 2.0])):
        with pytest.raises(ValueError, match=f"found {len(proposals)} proposals and {len(gaps)} gaps"):
            loop.take(proposals, gaps)


def test_an_infinite_margin_changes_nothing_and_costs_nothing():
    class Safe(Values):
        margin = float("inf")

    script, finished = Script({"a": "b"}), []
    traces = improve_many([Prompt.of("x")], ["a"], improver=script, gap=Safe(a=0, b=9), advance=finished.append)
    assert [(trace.final, trace.rounds, trace.stop_reason) for trace in traces] == [("a", (), "accepted-none")]
    assert (script.calls, finished) == ([], [1])


def test_the_margin_is_the_calibrated_one_unless_another_is_given():
    class Calibrated(Values):
        margin = 2.0

    steps, values = {"a": "b", "b": "b"}, {"a": 0, "b": 1}
    for margin, final in ((None, "a"), (0.0, "b")):
        assert improve("x", "a", improver=Script(steps), gap=Calibrated(**values), margin=margin).final == final


def test_several_proposals_are_asked_for_at_once():
    class Numbered(Script):
        def propose(self, prompts, references, **sampling):
            made = super().propose(prompts, references, **sampling)
            return [Answer(f"{answer.text}{number}", 1) for number, answer in enumerate(made)]

    script = Numbered({"a": "b", "p": "q"})
    values = Values(a=0, b0=1, b1=3, p=0, q2=5, q3=2)
    traces = improve_many([Prompt.of("x")] * 2, ["a", "p"], improver=script, gap=values, rounds=1, proposals=2)
    assert [call["references"] for call in script.calls] == [["a", "a", "p", "p"]]
    assert [trace.final for trace in traces] == ["b1", "q2"]
    assert [trace.rounds[0].gaps for trace in traces] == [(1.0, 3.0), (5.0, 2.0)]


def test_a_plain_function_can_stand_for_the_improver():
    seen = []

    def refine(prompt, reference):
        seen.append((prompt.text, reference))
        return Answer("b", 7, cost=0.5) if reference == "a" else "b"

    trace = improve("x", "a", improver=refine, gap=Values(a=0, b=1))
    assert (trace.final, trace.stop_reason, trace.cost) == ("b", StopReason.CONVERGED, 0.5)
    assert seen == [("x", "a"), ("x", "b")]


def test_the_gaps_may_be_a_plain_list():
    class Plain(Values):
        def gaps(self, items):
            return super().gaps(items).tolist()

    steps, values = {"a": "b", "b": "c"}, {"a": 0, "b": 1, "c": 0}
    assert improve("x", "a", improver=Script(steps), gap=Plain(**values)) == run(steps, values)[0]
