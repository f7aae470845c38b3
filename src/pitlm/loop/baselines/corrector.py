"""The corrector as others use it: its rewrite is taken as it is, whatever anybody thinks of it.

With the SFT-only improver and one round this is Aligner's recipe (arXiv:2402.02416); with M_PIT and several rounds it
is the iteration of the PIT paper, which has no stop rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pitlm.core.nouns import Advance, Prompt, Round, StopReason, Trace
from pitlm.loop.loop import Proposer


def correct(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    improver: Proposer,
    rounds: int = 1,
    temperature: float = 0.4,
    seed: int = 0,
    advance: Advance | None = None,
) -> list[Trace]:
    """Each response rewritten ``rounds`` times, every rewrite accepted; its gap is 0, as nobody measures it."""
    steps: list[list[Round]] = [[] for _ in prompts]
    references = list(responses)
    for number in range(rounds):
        proposals = improver.propose(prompts, references, temperature=temperature, seed=seed + number)
        for own, answer in zip(steps, proposals, strict=True):
            tokens, read = answer.generated_tokens, answer.prompt_tokens
            own.append(Round(answer.text, 0.0, True, tokens=tokens, prompt_tokens=read))
        references = [answer.text for answer in proposals]
        if advance is not None:
            advance(len(references))
    traces = [
        Trace(prompt, response, tuple(own), StopReason.ROUNDS)
        for prompt, response, own in zip(prompts, responses, steps, strict=True)
    ]
    return [first_rounds(trace, rounds) for trace in traces]


def first_rounds(trace: Trace, rounds: int) -> Trace:
    """What a trace was after so many rounds, and what it had cost by then."""
    kept = trace.rounds[:rounds]
    generated, read = sum(step.tokens for step in kept), sum(step.prompt_tokens for step in kept)
    return replace(trace, rounds=kept, generated_tokens=generated, prompt_tokens=read)
