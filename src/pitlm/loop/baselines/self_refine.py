"""Self-Refine (Madaan et al. 2023, arXiv:2303.17651): a chat model criticises its own answer and rewrites it.

As in its Algorithm 1: fb_t = M(p_fb, x, y_t); stop if fb_t asks for nothing more; y_{t+1} = M(p_refine, x, y_0, fb_0,
..., y_t, fb_t), with the earlier rounds in view. There are two variants: the last answer, and the best answer by the
model's own scores, which the paper uses where quality goes up and down. Two more are not in that paper and are for
models that are too small to criticise by a whole rubric: one criterion at a time, and a rewrite without feedback.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Prompt, Round, StopReason, Trace
from pitlm.loop.baselines.guide import Guide, Step


class Answerer(Protocol):
    """Answers prompts: :class:`pitlm.engines.generators.Policy`, or an engine. None stands for a failed answer."""

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seed: int) -> Sequence[Answer | None]: ...


def self_refine(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    chat: Answerer,
    guide: Guide,
    rounds: int = 3,
    best: bool = False,
    temperature: float = 0.7,
    seed: int = 0,
) -> list[Trace]:
    """Feedback, then rewrite, until the feedback asks for nothing more or the rounds are spent.

    A reply that failed is asked for again in the next round, and the answer stays as it was. Every reply is paid for,
    feedback included. A round of the trace is one rewrite with the feedback that led to it. With ``best``, it also has
    the feedback that scores the rewrite.

    Args:
        best: keep the best answer by the model's own scores, and not the last one.
        temperature: PIT's paper found 0.6 to 0.8 best for Self-Refine.

    Returns:
        One trace for each response: ``CONVERGED`` if the feedback asked for nothing more, else ``ROUNDS``.

    Raises:
        InputError: fewer than one round, or ``best`` with a guide that asks for no feedback.
    """
    if rounds < 1:
        raise InputError(f"rounds: found {rounds}, expected at least 1")
    if best and guide.feedback is None:
        raise InputError("best: found a guide with feedback: null, expected one whose feedback scores the answers")
    drafts = [_Draft(prompt, [response]) for prompt, response in zip(prompts, responses, strict=True)]
    talk = _Talk(chat, guide, temperature, seed)
    active = drafts
    for _ in range(rounds):
        talk.criticise(active)
        active = [draft for draft in active if not draft.satisfied]
        talk.rewrite(active)
    if best:
        talk.criticise(active, to_score=True)
    return [draft.trace(best=best) for draft in drafts]


@dataclass
class _Draft:
    """One response and its versions y_0 to y_t.

    Attributes:
        complaints: question and feedback for everything that is to be mended in y_t.
        steps: every rewrite so far.
        scores: the model's score of each version that it has criticised.
        feedback: replies that criticised each version.
        rewrites: replies that made each version after the first.
    """

    prompt: Prompt
    versions: list[str]
    satisfied: bool = False
    complaints: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    feedback: list[list[Answer]] = field(default_factory=list)
    rewrites: list[list[Answer]] = field(default_factory=list)

    def trace(self, *, best: bool) -> Trace:
        rounds = []
        top = self.scores[0] if self.scores else 0.0
        for number, version in enumerate(self.versions[1:]):
            # With `best`, a rewrite is known to be better only after its own feedback has been paid for.
            first = number + best if number else 0
            replies = [*self.rewrites[number], *chain.from_iterable(self.feedback[first : number + best + 1])]
            score = self.scores[number + 1] if number + 1 < len(self.scores) else -math.inf
            gap = score - top if math.isfinite(score) and math.isfinite(top) else 0.0
            rounds.append(Round(version, gap, not best or score > top, (), *_cost(replies)))
            top = max(top, score) if best else score
        reason = StopReason.CONVERGED if self.satisfied else StopReason.ROUNDS
        everything = [*chain.from_iterable(self.feedback), *chain.from_iterable(self.rewrites)]
        return Trace(self.prompt, self.versions[0], tuple(rounds), reason, *_cost(everything))


def _cost(replies: Sequence[Answer]) -> tuple[int, int]:
    """Generated tokens and prompt tokens."""
    return sum(reply.generated_tokens for reply in replies), sum(reply.prompt_tokens for reply in replies)


@dataclass
class _Talk:
    """Asks the model one question at a time, about all drafts; each call has its own seed."""

    chat: Answerer
    guide: Guide
    temperature: float
    seed: int

    def criticise(self, drafts: Sequence[_Draft], *, to_score: bool = False) -> None:
        """Get feedback on y_t of each draft; with ``to_score`` only to score it, so that no draft is satisfied."""
        for draft in drafts:
            draft.feedback.append([])
            draft.scores.append(0.0)
            draft.complaints = {}
            draft.satisfied = not to_score
        if self.guide.feedback is None:
            for draft in drafts:
                draft.complaints = dict.fromkeys(self.guide.questions, "")
                draft.satisfied = False
            return
        for question in self.guide.questions:
            asked = [self.guide.ask(draft.prompt, draft.versions[-1], question) for draft in drafts]
            for draft, reply in zip(drafts, self._answers(asked), strict=True):
                score = None if reply is None else self.guide.score_of(reply.text)
                draft.scores[-1] += -math.inf if score is None else score
                if reply is not None:
                    draft.feedback[-1].append(reply)
                    if self.guide.satisfied(reply.text):
                        continue
                    draft.complaints[question] = reply.text
                draft.satisfied = False

    def rewrite(self, drafts: Sequence[_Draft]) -> None:
        """Make y_{t+1} of each draft, one complaint after the other."""
        for draft in drafts:
            draft.rewrites.append([])
            draft.versions.append(draft.versions[-1])
        for question in self.guide.questions:
            asked = [draft for draft in drafts if question in draft.complaints]
            steps = [[*draft.steps, (draft.versions[-1], question, draft.complaints[question])] for draft in asked]
            shown = [self.guide.rewrite(draft.prompt, own) for draft, own in zip(asked, steps, strict=True)]
            for draft, own, reply in zip(asked, steps, self._answers(shown), strict=True):
                if reply is not None:
                    draft.steps = own
                    draft.rewrites[-1].append(reply)
                    draft.versions[-1] = reply.text

    def _answers(self, prompts: Sequence[Prompt]) -> Sequence[Answer | None]:
        if not prompts:
            return []
        self.seed += 1
        return self.chat.answer(prompts, temperature=self.temperature, seed=self.seed)
