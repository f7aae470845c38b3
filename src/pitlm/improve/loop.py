"""The loop: y_i ~ M_PIT(. | x, y_{i-1}), accepted only where R_PIT says it is better.

The paper iterates without a stop rule and says that one needs care. Ours: a proposal replaces the incumbent
only if its calibrated gap exceeds a margin; the first one that does not ends the loop, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Improvement, Message, Prompt, Round, StopReason, Trace

Advance = Callable[[int], None]


class Proposer(Protocol):
    """Writes a better version of each reference; :class:`pitlm.Improver` is one."""

    def propose(
        self, prompts: Sequence[Prompt], references: Sequence[str], *, temperature: float, seed: int
    ) -> list[Answer]: ...


class GapScorer(Protocol):
    """Calibrated gaps of (x, y_ref, y), 0 for no change; :class:`pitlm.GapModel` is one."""

    def gaps(self, items: Sequence[Improvement]) -> Tensor: ...


def improve(
    prompt: str | Prompt | Sequence[dict[str, Any] | Message],
    response: str,
    *,
    improver: Proposer,
    gap: GapScorer,
    rounds: int = 3,
    margin: float = 0.0,
    temperature: float = 0.4,
    seed: int = 0,
) -> Trace:
    """Improve one response; see :func:`improve_many`."""
    return improve_many(
        [Prompt.of(prompt)],
        [response],
        improver=improver,
        gap=gap,
        rounds=rounds,
        margin=margin,
        temperature=temperature,
        seed=seed,
    )[0]


def improve_many(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    improver: Proposer,
    gap: GapScorer,
    rounds: int = 3,
    margin: float = 0.0,
    temperature: float = 0.4,
    seed: int = 0,
    advance: Advance | None = None,
) -> list[Trace]:
    """Improve many responses together, round by round; one trace each.

    Args:
        rounds: at most this many proposals per response.
        margin: the calibrated gap that a proposal has to exceed.
        temperature: of the improver; 0.4 is the paper's best for PIT.
        advance: told how many responses have just been finished.

    Raises:
        InputError: fewer than one round, or a negative margin.
    """
    if rounds < 1:
        raise InputError(f"rounds: found {rounds}, expected at least 1")
    if margin < 0:
        raise InputError(f"margin: found {margin}, expected at least 0")
    states = [_State(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    for number in range(rounds):
        active = [state for state in states if state.reason is None]
        if not active:
            break
        references = [state.best for state in active]
        proposals = improver.propose(
            [state.prompt for state in active], references, temperature=temperature, seed=seed + number
        )
        gaps = gap.gaps(
            [
                Improvement(state.prompt, reference, proposal.text)
                for state, reference, proposal in zip(active, references, proposals, strict=True)
            ]
        ).tolist()
        for state, proposal, value in zip(active, proposals, gaps, strict=True):
            state.step(proposal, value, margin, last=number == rounds - 1)
        if advance is not None:
            advance(sum(state.reason is not None for state in active))
    return [state.trace() for state in states]


class _State:
    """One response on its way through the loop."""

    def __init__(self, prompt: Prompt, response: str) -> None:
        self.prompt = prompt
        self.original = self.best = response
        self.rounds: list[Round] = []
        self.reason: StopReason | None = None
        self.generated_tokens = self.prompt_tokens = 0

    def step(self, proposal: Answer, gap: float, margin: float, *, last: bool) -> None:
        self.generated_tokens += proposal.generated_tokens
        self.prompt_tokens += proposal.prompt_tokens
        unchanged = proposal.text == self.best
        accepted = not unchanged and gap > margin
        spent = {"tokens": proposal.generated_tokens, "prompt_tokens": proposal.prompt_tokens}
        self.rounds.append(Round(proposal.text, gap, accepted, **spent))
        if accepted:
            self.best = proposal.text
            self.reason = StopReason.ROUNDS if last else None
        else:
            self.reason = StopReason.CONVERGED if unchanged else StopReason.NO_GAIN

    def trace(self) -> Trace:
        assert self.reason is not None
        return Trace(
            self.prompt, self.original, tuple(self.rounds), self.reason, self.generated_tokens, self.prompt_tokens
        )
