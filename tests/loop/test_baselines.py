"""The baselines with scripted models: what is kept, and that everything is paid for."""

from __future__ import annotations

import pytest
import torch

from pitlm.core.nouns import Answer, Prompt, Round, StopReason, Trace
from pitlm.loop.baselines.budget import held_to
from pitlm.loop.baselines.corrector import correct, first_rounds
from pitlm.loop.baselines.sampling import best_of, draw, pick, resample

PROMPTS = [Prompt.of("one"), Prompt.of("two"), Prompt.of("three")]
ORIGINALS = [f"{prompt.text}-0" for prompt in PROMPTS]


class Policy:
    """The n-th answer to x is "x-n", and takes n tokens."""

    def __init__(self):
        self.calls = []

    def answer(self, prompts, *, temperature, seed, advance=None):
        self.calls.append(([prompt.text for prompt in prompts], temperature, seed))
        number = len(self.calls)
        return [Answer(f"{prompt.text}-{number}", generated_tokens=number, prompt_tokens=100) for prompt in prompts]


class Gaps:
    """A table of scores; it checks that each response comes beside its own prompt and original."""

    SCORES = {
        "one-0": 5.0, "one-1": 1.0, "one-2": 2.0,
        "two-0": 0.0, "two-1": 3.0, "two-2": 2.0,
        "three-0": 0.0, "three-1": 1.0, "three-2": 4.0,
    }  # fmt: skip

    def gaps(self, items):
        assert all(item.reference == f"{item.prompt.text}-0" for item in items)
        assert all(item.response.startswith(item.prompt.text + "-") for item in items)
        return torch.tensor([self.SCORES[item.response] - self.SCORES[item.reference] for item in items])


def run(samples, policy=None):
    settings = {"samples": samples, "temperature": 0.9, "seed": 5}
    return best_of(PROMPTS, ORIGINALS, policy=policy or Policy(), gap=Gaps(), **settings)


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
    drawn = draw(PROMPTS, policy=Policy(), samples=2, temperature=1.0, seed=0)
    traces = resample(PROMPTS, ORIGINALS, drawn)
    assert [trace.final for trace in traces] == ["one-1", "two-1", "three-1"]
    assert {trace.generated_tokens for trace in traces} == {1}


def test_under_a_budget_samples_are_drawn_until_it_is_spent():
    class Uneven(Policy):
        def answer(self, prompts, **kwargs):
            answers = super().answer(prompts, **kwargs)
            return [Answer(a.text, generated_tokens=6 if a.text.startswith("one") else 2) for a in answers]

    policy = Uneven()
    drawn = draw(PROMPTS[:2], policy=policy, samples=99, tokens=5, temperature=1.0, seed=0)
    assert [[answer.generated_tokens for answer in own] for own in drawn] == [[6], [2, 2, 2]]
    assert [asked for asked, _, _ in policy.calls] == [["one", "two"], ["two"], ["two"]]


def test_nothing_drawn_leaves_the_original():
    (trace,) = pick([PROMPTS[0]], ["one-0"], [[]], gap=Gaps())
    assert (trace.final, trace.generated_tokens) == ("one-0", 0)


class Rewriter:
    def __init__(self):
        self.calls = []

    def propose(self, prompts, references, *, temperature, seed):
        self.calls.append((list(references), temperature, seed))
        return [Answer(y + "!", generated_tokens=len(y), prompt_tokens=7) for y in references]


def test_a_corrector_is_taken_at_its_word_round_after_round():
    rewriter, told = Rewriter(), []
    traces = correct(
        PROMPTS[:2], ["a", "bb"], improver=rewriter, rounds=2, temperature=0.3, seed=9, advance=told.append
    )
    assert [trace.responses for trace in traces] == [("a", "a!", "a!!"), ("bb", "bb!", "bb!!")]
    assert [(trace.generated_tokens, trace.prompt_tokens) for trace in traces] == [(1 + 2, 14), (2 + 3, 14)]
    assert rewriter.calls == [(["a", "bb"], 0.3, 9), (["a!", "bb!"], 0.3, 10)]
    assert told == [2, 2]
    assert [first_rounds(trace, 1) for trace in traces] == correct(PROMPTS[:2], ["a", "bb"], improver=Rewriter())


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
    assert held_to(trace(3, 5, extra=2), 8).prompt_tokens == 20  # and what was never asked was never read
    assert held_to(trace(3, 5, extra=2), 10) == trace(3, 5, extra=2)
