"""Self-Refine (Madaan et al. 2023, arXiv:2303.17651): a chat model criticises its own answer and rewrites it.

As in its Algorithm 1: fb_t = M(p_fb, x, y_t); stop if fb_t asks for nothing more; y_{t+1} = M(p_refine, x, y_0, fb_0,
..., y_t, fb_t), with the earlier rounds in view. There are two variants: the last answer, and the best answer by the
model's own scores, which the paper uses where quality goes up and down. Not in that paper: a rubric
that is asked about one criterion at a time, for models that are too small for the whole rubric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Protocol

from pydantic import field_validator, model_validator

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Message, Prompt, Round, StopReason, Trace
from pitlm.core.recipe_file import read_tree
from pitlm.core.section import Section

PROMPTS = Path(__file__).parents[1] / "prompts"
DEFAULT, POCKET = PROMPTS / "self_refine.yaml", PROMPTS / "pocket.yaml"
RUBRIC = "{rubric}"

Step = tuple[str, str, str]
"""One rewrite: the response, the question about it, and the feedback."""


class WorkedRound(Section):
    """A worked example of one round, which the model sees before the real round."""

    prompt: str
    response: str
    feedback: str
    refined: str


class Guide(Section):
    """The prompts of Self-Refine.

    Attributes:
        rubric: the criteria: a name for each, and the text that the model sees.
        feedback: request for feedback on the answer before it; {rubric} is filled in.
        refine: request for a better answer after the feedback; {rubric} is filled in.
        done: regular expression that is found in feedback that asks for nothing more.
        score: regular expression whose group is the score.
        apart: ask about each criterion separately, not about all of them at once.
        history: show earlier answers and their feedback when asking for a better answer.
        examples: few-shot examples.
    """

    rubric: dict[str, str]
    feedback: str
    refine: str
    done: re.Pattern[str]
    score: re.Pattern[str] | None = None
    apart: bool = False
    history: bool = True
    examples: list[WorkedRound] = []

    @field_validator("feedback")
    @classmethod
    def _shows_the_rubric(cls, value: str) -> str:
        if RUBRIC not in value:
            raise ValueError(f"expected {RUBRIC} in it: the model would never see the rubric")
        return value

    @field_validator("score")
    @classmethod
    def _has_one_group(cls, value: re.Pattern[str] | None) -> re.Pattern[str] | None:
        if value is not None and value.groups != 1:
            raise ValueError("expected one group, around the number")
        return value

    @model_validator(mode="after")
    def _examples_fit(self) -> Guide:
        if self.apart and self.examples:
            raise ValueError("'examples' show the whole rubric at once; they cannot be used with 'apart'")
        return self

    @classmethod
    def load(cls, path: Path = DEFAULT) -> Guide:
        """Read a YAML file. Raises InputError: it is unreadable, or has an unknown key or an impossible value."""
        return cls.of(read_tree(path, "file of Self-Refine's prompts"), str(path))

    def only(self, names: Sequence[str]) -> Guide:
        """The same guide with a rubric of these criteria alone.

        Raises:
            InputError: a criterion that the rubric does not have.
        """
        if unknown := [name for name in names if name not in self.rubric]:
            raise InputError(f"rubric: found '{unknown[0]}', expected one of {', '.join(self.rubric)}")
        return self.model_copy(update={"rubric": {name: text for name, text in self.rubric.items() if name in names}})

    @property
    def questions(self) -> tuple[str, ...]:
        """The texts that are filled in for the rubric: one list of all criteria, or each criterion by itself."""
        if self.apart:
            return tuple(self.rubric.values())
        return ("\n".join(f"- {text}" for text in self.rubric.values()),) if self.rubric else ()

    def ask(self, prompt: Prompt, response: str, question: str) -> Prompt:
        """The conversation that asks for feedback: M(p_fb, x, y_t)."""
        return Prompt.of([*self._opening(prompt, question), *_turns(response, self.feedback, question)])

    def rewrite(self, prompt: Prompt, steps: Sequence[Step]) -> Prompt:
        """The conversation that asks for a better answer: M(p_refine, x, y_0, fb_0, ..., y_t, fb_t).

        Args:
            steps: the rewrites so far, and last the rewrite that is asked for.
        """
        conversation = self._opening(prompt, steps[-1][1])
        for response, question, feedback in steps if self.history else steps[-1:]:
            conversation += [*_turns(response, self.feedback, question), *_turns(feedback, self.refine, question)]
        return Prompt.of(conversation)

    def satisfied(self, feedback: str) -> bool:
        """Whether the feedback asks for nothing more."""
        return self.done.search(feedback) is not None

    def score_of(self, feedback: str) -> float | None:
        """The score in the feedback. Without ``score``: 1 if the feedback asks for nothing more, else 0."""
        if self.score is None:
            return float(self.satisfied(feedback))
        found = self.score.search(feedback)
        try:
            return float(found[1]) if found else None
        except ValueError:
            return None

    def _opening(self, prompt: Prompt, question: str) -> list[Message]:
        """The few-shot examples, then x; a system turn stays in front."""
        turns = list(prompt.messages)
        shown = [turns.pop(0)] if turns[0].role == "system" else []
        for example in self.examples:
            shown += [
                Message("user", example.prompt),
                *_turns(example.response, self.feedback, question),
                *_turns(example.feedback, self.refine, question),
                Message("assistant", example.refined),
            ]
        return [*shown, *turns]


def _turns(reply: str, request: str, question: str) -> list[Message]:
    """The assistant's turn, and the user's next one."""
    return [Message("assistant", reply), Message("user", request.replace(RUBRIC, question))]


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
        InputError: fewer than one round.
    """
    if rounds < 1:
        raise InputError(f"rounds: found {rounds}, expected at least 1")
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
