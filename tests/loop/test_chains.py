"""Systems without a stop rule: every round is accepted and costs tokens, and a budget cuts them off."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pytest

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt, Round, StopReason, Trace
from pitlm.loop.chains import Unmeasured, always_accept, first_rounds, held_to, incumbents, play

PROMPTS = [Prompt.of("one"), Prompt.of("two"), Prompt.of("three")]


class Rewriter:
    def __init__(self):
        self.calls = []

    def propose(self, prompts, references, *, temperature, seed):
        self.calls.append((list(references), temperature, seed))
        return [Answer(y + "!", generated_tokens=len(y), prompt_tokens=7) for y in references]


def chain(improver, rounds, **more):
    settings = LoopSection(rounds=rounds, temperature=0.3, tokens=1)
    return always_accept(
        list(zip(PROMPTS, ["a", "bb"], strict=False)),
        improver=improver,
        gap=Unmeasured(),
        settings=settings,
        seed=9,
        **more,
    )


def test_an_improver_is_taken_at_its_word_round_after_round():
    rewriter, told = Rewriter(), []
    traces = chain(rewriter, 2, advance=told.append)
    assert [trace.responses for trace in traces] == [("a", "a!", "a!!"), ("bb", "bb!", "bb!!")]
    assert [(trace.generated_tokens, trace.prompt_tokens) for trace in traces] == [(1 + 2, 14), (2 + 3, 14)]
    assert rewriter.calls == [(["a", "bb"], 0.3, 9), (["a!", "bb!"], 0.3, 10)]
    assert told == [2, 2]
    assert [first_rounds(trace, 1) for trace in traces] == chain(Rewriter(), 1)
    assert {gap for trace in traces for gap in trace.gaps} == {0.0}


def test_a_round_that_changes_nothing_is_a_round():
    class Copier(Rewriter):
        def propose(self, prompts, references, **sampling):
            return [Answer(y, generated_tokens=2) for y in references]

    for trace in chain(Copier(), 3):
        assert incumbents(trace) == [trace.original] * 4
        assert (len(trace.rounds), trace.generated_tokens, trace.final) == (3, 6, trace.original)


def trace(*tokens, extra=0):
    rounds = tuple(Round(f"y{i}", 1.0, True, tokens=n, prompt_tokens=10) for i, n in enumerate(tokens, 1))
    return Trace(
        PROMPTS[0], "y0", rounds, StopReason.CONVERGED, sum(tokens) + extra, 10 * len(tokens) + (3 if extra else 0)
    )


@pytest.mark.parametrize(
    ("budget", "final", "spent", "read"),
    [(12, "y3", 12, 30), (11, "y2", 11, 30), (9, "y2", 9, 30), (8, "y2", 8, 20), (7, "y1", 7, 20), (5, "y1", 5, 20), (2, "y0", 2, 10)],
)  # fmt: skip
def test_a_budget_cuts_off_what_it_does_not_cover(budget, final, spent, read):
    held = held_to(trace(3, 5, 4), budget)
    assert (held.final, held.generated_tokens, held.prompt_tokens) == (final, spent, read)
    assert held.stop_reason is (StopReason.CONVERGED if budget == 12 else StopReason.TOKENS)


def test_a_budget_that_ends_after_the_last_round_takes_nothing_away():
    held = held_to(trace(3, 5, extra=2), 9)
    assert (held.final, held.generated_tokens, held.prompt_tokens) == ("y2", 9, 23)
    assert held_to(trace(3, 5, extra=2), 8).prompt_tokens == 20  # a request that was never sent costs no prompt tokens
    assert held_to(trace(3, 5, extra=2), 10) == trace(3, 5, extra=2)


class Numbers:
    """Answers are numbers; a proposal is off by up to 3."""

    def propose(self, prompts, references, *, temperature, seed):
        draw = random.Random(seed)
        return [Answer(str(int(y) + draw.choice([-1, 1, 2, 3])), generated_tokens=2) for y in references]


def answered(name, count):
    return [(Prompt.of(f"{name} {number}"), "0") for number in range(count)]


@pytest.mark.parametrize("proposals", [1, 2])
def test_several_scorers_share_what_is_played_where_none_of_them_chooses(proposals, monkeypatch):
    class Sure:
        def gaps(self, items):
            return [int(item.response) - int(item.reference) for item in items]

    class Contrary(Sure):
        def gaps(self, items):
            return [-gap for gap in super().gaps(items)]

    class Counting(Numbers):
        calls = 0

        def propose(self, *asked, **sampling):
            self.calls += 1
            return super().propose(*asked, **sampling)

    settings, sets = LoopSection(rounds=2, proposals=proposals), [answered("one", 30), answered("two", 20)]
    scorers, improver, totals, steps = {"one": Sure(), "two": Contrary()}, Counting(), [], []

    @contextmanager
    def bar(title, total):
        totals.append(total)
        yield steps.append

    monkeypatch.setattr("pitlm.loop.chains.progress_bar", bar)
    played = play(scorers, sets, improver=improver, settings=settings, seed=0)
    assert improver.calls == 4 * proposals
    assert totals == [sum(steps)] == [100 * proposals]
    for name, scorer in scorers.items():
        assert played[name] == play({name: scorer}, sets, improver=Numbers(), settings=settings, seed=0)[name]
    one, two = (played[name][0][0] for name in scorers)
    assert (one.responses == two.responses) == (proposals == 1)
    assert (one.gaps == tuple(-gap for gap in two.gaps)) == (proposals == 1)
