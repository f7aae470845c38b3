"""Traces of systems that have no stop rule: made round by round, cut after some rounds, or held to a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Advance, Improvement, Prompt, Round, StopReason, Trace
from pitlm.io.console import progress_bar
from pitlm.loop.loop import GapScorer, Loop, Proposer, play_round


class Unmeasured:
    """Scores every proposal with 0: for chains that accept each proposal without looking at it."""

    def gaps(self, items: Sequence[Improvement]) -> list[float]:
        return [0.0] * len(items)


def always_accept(
    answers: Sequence[tuple[Prompt, str]],
    *,
    improver: Proposer,
    gap: GapScorer,
    settings: LoopSection,
    seed: int,
    advance: Advance | None = None,
) -> list[Trace]:
    """Run the loop without a stop rule: in every round the best proposal becomes the incumbent, whatever its gap.

    With the SFT-only improver and one round this is Aligner's recipe (arXiv:2402.02416). With M_PIT and several rounds
    it is the iteration of the PIT paper.

    Args:
        answers: each x with its y_0.
        settings: rounds, proposals and temperature; budgets are ignored.
        advance: called with the number of responses after each round.
    """
    unlimited = settings.model_copy(update={"tokens": None, "seconds": None, "cost": None})
    loops = [Loop(x, y, unlimited, margin=-math.inf) for x, y in answers]
    for number in range(settings.rounds):
        play_round(loops, improver, gap, seed=seed + number)
        if advance is not None:
            advance(len(loops))
    return [loop.trace() for loop in loops]


def without_stop_rule(prompt: Prompt, original: str, rounds: Sequence[Round]) -> Trace:
    """The trace of a system that does its rounds, pays for all of them, and stops when they are done."""
    generated, read = sum(step.tokens for step in rounds), sum(step.prompt_tokens for step in rounds)
    return Trace(prompt, original, tuple(rounds), StopReason.ROUNDS, generated, read)


def first_rounds(trace: Trace, rounds: int) -> Trace:
    """The first ``rounds`` rounds of a trace, and their cost."""
    return without_stop_rule(trace.prompt, trace.original, trace.rounds[:rounds])


def rescored(traces: Sequence[Trace], gap: GapScorer) -> list[Trace]:
    """The same chains with the gaps of another scorer. With one proposal a round, it would make the same chains."""
    steps = [
        Improvement(trace.prompt, reference, step.proposal)
        for trace in traces
        for reference, step in zip(incumbents(trace), trace.rounds, strict=False)
    ]
    gaps = (float(value) for value in gap.gaps(steps))
    return [replace(trace, rounds=tuple(replace(step, gap=next(gaps)) for step in trace.rounds)) for trace in traces]


def play(
    scorers: Mapping[str, GapScorer],
    sets: Sequence[Sequence[tuple[Prompt, str]]],
    *,
    improver: Proposer,
    settings: LoopSection,
    seed: int,
) -> dict[str, list[list[Trace]]]:
    """Run "always accept" on sets of first answers with each scorer, behind a progress bar over all rounds.

    With one proposal a round no scorer has a choice, so the rounds are played once, and then scored by each scorer.
    """
    shared = settings.proposals == 1
    rounds = settings.rounds * sum(map(len, sets))
    with progress_bar("calibrating", rounds if shared else rounds * len(scorers)) as advance:
        chain = partial(always_accept, improver=improver, settings=settings, seed=seed, advance=advance)
        if not shared:
            return {name: [chain(answers, gap=gap) for answers in sets] for name, gap in scorers.items()}
        played = [chain(answers, gap=Unmeasured()) for answers in sets]
    return {name: [rescored(traces, gap) for traces in played] for name, gap in scorers.items()}


def incumbents(trace: Trace) -> list[str]:
    """The original, and the best answer after each round; len(trace.rounds) + 1 texts."""
    texts = [trace.original]
    for step in trace.rounds:
        texts.append(step.proposal if step.accepted else texts[-1])
    return texts


def first_growth(traces: Sequence[Trace]) -> list[float]:
    """Length of each first proposal divided by that of its original, in characters; an empty original counts as one."""
    return [len(trace.rounds[0].proposal) / max(1, len(trace.original)) for trace in traces if trace.rounds]


def held_to(trace: Trace, tokens: int) -> Trace:
    """The trace as it would be if generation were cut off after ``tokens`` tokens. Not in the paper.

    A round that the budget does not cover to its end brings nothing, but its tokens are spent. Scoring generates no
    tokens, so it costs nothing here.
    """
    if trace.generated_tokens <= tokens:
        return trace
    spent = read = kept = 0
    for step in trace.rounds:
        if spent == tokens:
            break
        spent, read = spent + step.tokens, read + step.prompt_tokens
        if spent > tokens:
            break
        kept += 1
    else:  # the trace has tokens beyond its last round: a request that brought nothing, such as a last feedback
        read = trace.prompt_tokens if spent < tokens else read
    rounds, reason = trace.rounds[:kept], StopReason.TOKENS
    return replace(trace, rounds=rounds, stop_reason=reason, generated_tokens=tokens, prompt_tokens=read)
