"""What Self-Refine says to its model: requests, rubric and few-shot examples, from a file that the user can replace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import field_validator, model_validator

from pitlm.core.errors import InputError
from pitlm.core.nouns import Message, Prompt
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
        """Read a YAML file.

        Raises:
            InputError: an unreadable file, an unknown key or an impossible value.
        """
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
            steps: the rewrites so far, and last the one that is asked for.
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
