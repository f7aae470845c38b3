"""The prompts of Self-Refine: the requests for feedback and for a better answer, read from a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, model_validator

from pitlm.core.nouns import Message, Prompt
from pitlm.core.recipe_file import read_tree
from pitlm.core.section import NonNegativeFloat, PositiveInt, Section

PROMPTS = Path(__file__).parents[1] / "prompts"
DEFAULT = PROMPTS / "self_refine.yaml"
RUBRIC, PROMPT = "{rubric}", "{prompt}"

Step = tuple[str, str, str]
"""One rewrite: the response, the question about it, and the feedback."""


class WorkedRound(Section):
    """A worked example of one round, which the model sees before the real round."""

    prompt: str
    response: str
    feedback: str
    refined: str


def _shows_the_rubric(request: str | None) -> str | None:
    if request is not None and RUBRIC not in request:
        raise ValueError(f"expected {RUBRIC} in it: the model would never see the rubric")
    return request


def _has_one_group(pattern: re.Pattern[str] | None) -> re.Pattern[str] | None:
    if pattern is not None and pattern.groups != 1:
        raise ValueError("expected one group, around the number")
    return pattern


class Guide(Section):
    """The prompts of Self-Refine.

    Attributes:
        rubric: the criteria: a name for each, and the text that the model sees.
        feedback: request for feedback on the answer before it; {rubric} is filled in. null: rewrites without feedback,
            for models that are too small to criticise.
        refine: request for a better answer; {rubric} and {prompt}, the user's last message, are filled in. Some small
            models write about the request unless the question follows it.
        done: regular expression that is found in feedback that asks for nothing more.
        score: regular expression whose group is the score.
        apart: ask about each criterion separately, not about all of them at once.
        history: show earlier answers and their feedback when asking for a better answer.
        examples: few-shot examples.
        rounds: most rounds for an answer in an evaluation; null: as many as the loop of PIT has.
        temperature: of every reply in an evaluation; PIT's paper found 0.6 to 0.8 best.
    """

    rubric: dict[str, str]
    feedback: Annotated[str | None, AfterValidator(_shows_the_rubric)]
    refine: str
    done: re.Pattern[str] | None = None
    score: Annotated[re.Pattern[str] | None, AfterValidator(_has_one_group)] = None
    apart: bool = False
    history: bool = True
    examples: list[WorkedRound] = []
    rounds: PositiveInt | None = None
    temperature: NonNegativeFloat = 0.7

    @model_validator(mode="after")
    def _parts_fit(self) -> Guide:
        if self.apart and self.examples:
            raise ValueError("'examples' show the whole rubric at once; they cannot be used with 'apart'")
        if self.feedback is not None and self.done is None:
            raise ValueError("found 'feedback' without 'done', expected an expression that finds satisfied feedback")
        if self.feedback is None and (self.score or self.examples or self.done):
            raise ValueError("found 'done', 'score' or 'examples' beside feedback: null, expected feedback for them")
        return self

    @classmethod
    def load(cls, path: Path = DEFAULT) -> Guide:
        """Read a YAML file. Raises InputError: it is unreadable, or has an unknown key or an impossible value."""
        return cls.of(read_tree(path, "file of Self-Refine's prompts"), str(path))

    @property
    def questions(self) -> tuple[str, ...]:
        """The texts that are filled in for the rubric: all criteria at once, as a list, or each criterion by itself.

        Without criteria: one empty text if the guide asks for no feedback, else no text.
        """
        criteria = tuple(self.rubric.values())
        if self.apart or len(criteria) == 1:
            return criteria
        if self.feedback is None and not criteria:
            return ("",)
        return ("\n".join(f"- {text}" for text in criteria),) if criteria else ()

    def ask(self, prompt: Prompt, response: str, question: str) -> Prompt:
        """The conversation that asks for feedback: M(p_fb, x, y_t)."""
        assert self.feedback is not None
        return Prompt.of([*self._opening(prompt, question), *_turns(response, self.feedback, question)])

    def rewrite(self, prompt: Prompt, steps: Sequence[Step]) -> Prompt:
        """The conversation that asks for a better answer: M(p_refine, x, y_0, fb_0, ..., y_t, fb_t), or without fb.

        Args:
            steps: the rewrites so far, and last the rewrite that is asked for.
        """
        conversation = self._opening(prompt, steps[-1][1])
        for response, question, feedback in steps if self.history else steps[-1:]:
            if self.feedback is not None:
                conversation += _turns(response, self.feedback, question)
                response = feedback
            conversation += _turns(response, self.refine, question, prompt.text)
        return Prompt.of(conversation)

    def satisfied(self, feedback: str) -> bool:
        """Whether the feedback asks for nothing more."""
        return self.done is not None and self.done.search(feedback) is not None

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
            assert self.feedback is not None
            shown += [
                Message("user", example.prompt),
                *_turns(example.response, self.feedback, question),
                *_turns(example.feedback, self.refine, question, example.prompt),
                Message("assistant", example.refined),
            ]
        return [*shown, *turns]


def _turns(reply: str, request: str, question: str, prompt: str = PROMPT) -> list[Message]:
    """The assistant's turn, and the user's next one."""
    return [Message("assistant", reply), Message("user", request.replace(RUBRIC, question).replace(PROMPT, prompt))]
