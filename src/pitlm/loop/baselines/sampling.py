"""Baselines that answer again: resample, and the best of N by whatever scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pitlm.core.nouns import Advance, Answer, Improvement, Prompt, Round, StopReason, Trace
from pitlm.loop.loop import GapScorer


class Answerer(Protocol):
    """Answers prompts; :class:`pitlm.models.generators.Policy` is one."""

    def answer(
        self, prompts: Sequence[Prompt], *, temperature: float, seed: int, advance: Advance | None
    ) -> list[Answer]: ...


def draw(
    prompts: Sequence[Prompt],
    *,
    policy: Answerer,
    samples: int,
    tokens: int | None = None,
    temperature: float,
    seed: int,
    advance: Advance | None = None,
) -> list[list[Answer]]:
    """Up to ``samples`` further answers to each prompt, fewer where ``tokens`` have been generated for it before."""
    drawn: list[list[Answer]] = [[] for _ in prompts]
    for number in range(samples):
        wanted = [
            index
            for index, own in enumerate(drawn)
            if tokens is None or sum(answer.generated_tokens for answer in own) < tokens
        ]
        if not wanted:
            break
        asked = [prompts[index] for index in wanted]
        answers = policy.answer(asked, temperature=temperature, seed=seed + number, advance=advance)
        for index, answer in zip(wanted, answers, strict=True):
            drawn[index].append(answer)
    return drawn


def pick(
    prompts: Sequence[Prompt], responses: Sequence[str], drawn: Sequence[Sequence[Answer]], *, gap: GapScorer
) -> list[Trace]:
    """The best of each response and its candidates, by their gap to the response, which has 0.

    With R_PIT this is best-of-N against the original; with R_P(y) - R_P(y_ref), best-of-N with R_P. Each candidate is
    a round of the trace, accepted where it is better than the best before it; its gap is to that one.
    """
    asked = [
        Improvement(prompt, response, answer.text)
        for prompt, response, own in zip(prompts, responses, drawn, strict=True)
        for answer in own
    ]
    gaps = iter([float(value) for value in gap.gaps(asked)] if asked else [])
    traces = []
    for prompt, response, own in zip(prompts, responses, drawn, strict=True):
        best, rounds = 0.0, []
        for answer in own:
            value = next(gaps)
            rounds.append(_round(answer, value - best, accepted=value > best))
            best = max(best, value)
        traces.append(_trace(prompt, response, rounds))
    return traces


def best_of(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    policy: Answerer,
    gap: GapScorer,
    samples: int,
    temperature: float,
    seed: int,
    advance: Advance | None = None,
) -> list[Trace]:
    """The best of each response and ``samples`` further answers of the policy; see :func:`pick`."""
    drawn = draw(prompts, policy=policy, samples=samples, temperature=temperature, seed=seed, advance=advance)
    return pick(prompts, responses, drawn, gap=gap)


def resample(prompts: Sequence[Prompt], responses: Sequence[str], drawn: Sequence[Sequence[Answer]]) -> list[Trace]:
    """The first further answer in the place of the response, unseen: what another draw is worth."""
    return [
        _trace(prompt, response, [_round(answer, 0.0, accepted=True) for answer in own[:1]])
        for prompt, response, own in zip(prompts, responses, drawn, strict=True)
    ]


def _round(answer: Answer, gap: float, *, accepted: bool) -> Round:
    return Round(answer.text, gap, accepted, tokens=answer.generated_tokens, prompt_tokens=answer.prompt_tokens)


def _trace(prompt: Prompt, response: str, rounds: Sequence[Round]) -> Trace:
    generated, read = sum(step.tokens for step in rounds), sum(step.prompt_tokens for step in rounds)
    return Trace(prompt, response, tuple(rounds), StopReason.ROUNDS, generated, read)
