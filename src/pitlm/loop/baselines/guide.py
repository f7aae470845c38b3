"""What Self-Refine says to its model: prompts, rubric and few-shot examples, from a file that the user can replace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.recipe_file import parse_tree, read_tree
from pitlm.core.section import Section
from pitlm.loop.baselines.chat import Conversation

PROMPTS = Path(__file__).parents[1] / "prompts"
DEFAULT, POCKET = PROMPTS / "self_refine.yaml", PROMPTS / "pocket.yaml"
RUBRIC = "{rubric}"


class WorkedRound(Section):
    """One worked round, shown before the real one."""

    prompt: str
    response: str
    feedback: str
    refined: str


class Guide(Section):
    """The prompts of Self-Refine."""

    rubric: dict[str, str] = Field(description="the criteria: a name for each, and what the model is told of it")
    feedback: str = Field(description="asks for feedback on the answer before it; {rubric} is put in")
    refine: str = Field(description="asks for a better answer after the feedback; {rubric} is put in")
    done: str = Field(description="regular expression: feedback in which it is found asks for nothing more")
    score: str | None = Field(None, description="regular expression whose group is the score that the feedback gives")
    apart: bool = Field(False, description="ask about each criterion by itself, in place of all of them at once")
    history: bool = Field(True, description="show earlier answers and their feedback when a better one is asked for")
    examples: list[WorkedRound] = Field([], description="few-shot examples")

    @field_validator("feedback")
    @classmethod
    def _shows_the_rubric(cls, value: str) -> str:
        if RUBRIC not in value:
            raise ValueError(f"expected {RUBRIC} in it: the model would never see the rubric")
        return value

    @field_validator("done", "score")
    @classmethod
    def _compiles(cls, value: str | None, info: ValidationInfo) -> str | None:
        try:
            groups = re.compile(value or "").groups
        except re.error as error:
            raise ValueError(f"expected a regular expression: {error}") from error
        if value is not None and info.field_name == "score" and groups != 1:
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
        return parse_tree(cls, read_tree(path, "file of Self-Refine's prompts"), str(path))

    def only(self, names: Sequence[str]) -> Guide:
        """The same prompts with a rubric of these criteria alone.

        Raises:
            InputError: a criterion that the rubric does not have.
        """
        for name in names:
            if name not in self.rubric:
                raise InputError(f"rubric: found '{name}', expected one of {', '.join(self.rubric)}")
        return self.model_copy(update={"rubric": {name: text for name, text in self.rubric.items() if name in names}})

    @property
    def questions(self) -> tuple[str, ...]:
        """What is put in for the rubric: all criteria as one list, or one after the other; none for no criteria."""
        if self.apart:
            return tuple(self.rubric.values())
        return ("\n".join(f"- {text}" for text in self.rubric.values()),) if self.rubric else ()

    def ask(self, prompt: Prompt, response: str, question: str) -> Conversation:
        """The conversation that asks for feedback: M(p_fb, x, y_t)."""
        return [*self._opening(prompt, question), *self._asked(response, question)]

    def rewrite(self, prompt: Prompt, steps: Sequence[tuple[str, str, str]]) -> Conversation:
        """The conversation that asks for a better answer: M(p_refine, x, y_0, fb_0, ..., y_t, fb_t).

        Args:
            steps: response, question and feedback of each step so far, the one to be answered last.
        """
        conversation = self._opening(prompt, steps[-1][1])
        for response, question, feedback in steps if self.history else steps[-1:]:
            conversation += [*self._asked(response, question), *self._told(feedback, question)]
        return conversation

    def satisfied(self, feedback: str) -> bool:
        return re.search(self.done, feedback) is not None

    def score_of(self, feedback: str) -> float | None:
        """The score that the feedback gives; without ``score``, 1 where it asks for nothing more and else 0."""
        if self.score is None:
            return float(self.satisfied(feedback))
        found = re.search(self.score, feedback)
        try:
            return float(found[1]) if found else None
        except ValueError:
            return None

    def _opening(self, prompt: Prompt, question: str) -> Conversation:
        """The few-shot examples, then x; a system turn stays in front."""
        turns = prompt.as_messages()
        system = [turns.pop(0)] if turns[0]["role"] == "system" else []
        shown: Conversation = []
        for example in self.examples:
            shown += [
                {"role": "user", "content": example.prompt},
                *self._asked(example.response, question),
                *self._told(example.feedback, question),
                {"role": "assistant", "content": example.refined},
            ]
        return [*system, *shown, *turns]

    def _asked(self, response: str, question: str) -> Conversation:
        request = self.feedback.replace(RUBRIC, question)
        return [{"role": "assistant", "content": response}, {"role": "user", "content": request}]

    def _told(self, feedback: str, question: str) -> Conversation:
        request = self.refine.replace(RUBRIC, question)
        return [{"role": "assistant", "content": feedback}, {"role": "user", "content": request}]
