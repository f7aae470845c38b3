"""Files of one system's answers, AlpacaEval's ``model_outputs.json`` among them, and two such files as comparisons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison
from pitlm.data.pairs import describe
from pitlm.data.prompt_fields import PROMPT_FIELDS, check_unicode, prompt_in, prompt_text
from pitlm.data.readers import read_sound_rows
from pitlm.io.atomic import write_text

ANSWER_FIELDS = ("final", "response", "output")
"""What `pit improve` made comes before what it was given."""
SHOWN = 60


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """One row of a file of answers: the prompt, what the system answered, the row as it was, and where it stands."""

    prompt: Prompt
    text: str
    row: Mapping[str, Any]
    where: str

    @property
    def id(self) -> str | None:
        value = self.row.get("id")
        return None if value is None or value == "" else str(value)


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """One system's answers, in the order of the file."""

    path: Path
    system: str
    answers: tuple[GivenAnswer, ...]


def read_answers(path: Path) -> AnswerFile:
    """Read jsonl, json, csv or parquet rows.

    A row has the prompt as ``prompt``, ``messages`` or ``instruction`` (text or chat messages) and the answer as
    ``final``, ``response`` or ``output``; the first of these that it has counts. The system is called what the rows
    say in ``generator``, else as the file.

    Raises:
        InputError: an unreadable file or row, no rows, or more than one generator.
    """
    path = Path(path)
    answers = [_answer(raw.data, raw.file, raw.line) for raw in read_sound_rows(path)]
    if not answers:
        raise InputError.at(path, found="no rows", expected="rows with a prompt and an answer")
    names = list(dict.fromkeys(str(answer.row["generator"]) for answer in answers if answer.row.get("generator")))
    if len(names) > 1:
        raise InputError.at(path, field="generator", found=", ".join(names[:3]), expected="one system's answers")
    return AnswerFile(path, names[0] if names else _stem(path), tuple(answers))


def _answer(row: object, file: str, line: int) -> GivenAnswer:
    if not isinstance(row, Mapping):
        raise InputError.at(file, line=line, found=describe(row), expected="an object with a prompt and an answer")
    prompt_field, answer_field = (_field(row, names, file, line) for names in (PROMPT_FIELDS, ANSWER_FIELDS))
    prompt = prompt_in(row, prompt_field, file, line)
    text = row[answer_field]
    if not isinstance(text, str):
        raise InputError.at(file, line=line, field=answer_field, found=describe(text), expected="a string")
    written = {prompt_field: prompt_text(prompt), answer_field: text}
    for name, value in {**written, "id": str(row.get("id")), "generator": str(row.get("generator"))}.items():
        check_unicode(value, file, line, name)
    return GivenAnswer(prompt, text, row, f"{file}:{line}")


def _field(row: Mapping[str, Any], names: Sequence[str], file: str, line: int) -> str:
    """The first of the fields that holds something."""
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        had = f"the fields {', '.join(map(str, row)) or '(none)'}"[:120]
        raise InputError.at(file, line=line, found=had, expected=" or ".join(f"'{name}'" for name in names))
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def read_comparisons(first: Path, second: Path) -> list[Comparison]:
    """The answers of two files side by side, in the order of the first file.

    Raises:
        InputError: as :func:`read_answers` and :func:`pair_answers` do.
    """
    return pair_answers(read_answers(first), read_answers(second))


def pair_answers(first: AnswerFile, second: AnswerFile) -> list[Comparison]:
    """Pair two systems' answers by ``id`` where every row has one, else by prompt.

    What occurs several times is paired in the order of appearance. The item is the id, or the prompt's key; ``#2`` and
    so on marks a repetition.

    Raises:
        InputError: an answer that has no counterpart, or two prompts under one id.
    """
    by_id = all(answer.id is not None for file in (first, second) for answer in file.answers)
    ours, theirs = (_by_item(file.answers, by_id=by_id) for file in (first, second))
    for here, there, own, others in ((first, second, ours, theirs), (second, first, theirs, ours)):
        lone = [answer for item, answer in own.items() if item not in others]
        if lone:
            raise InputError(
                f"{here.path}: found {len(lone)} of {len(own)} answers with no counterpart in {there.path}, the first "
                f"at {lone[0].where} ({_shown(lone[0], by_id=by_id)}); "
                f"expected the same {'ids' if by_id else 'prompts'}"
            )
    systems = _names(first, second)
    comparisons = []
    for item, answer in ours.items():
        other = theirs[item]
        if answer.prompt != other.prompt:
            raise InputError(
                f"{answer.where}: found another prompt than {other.where} has under the same id '{item}' "
                f"({_shown(answer, by_id=False)}); expected the same prompt"
            )
        comparisons.append(Comparison(answer.prompt, answer.text, other.text, item, systems))
    return comparisons


def _by_item(answers: Sequence[GivenAnswer], *, by_id: bool) -> dict[str, GivenAnswer]:
    seen: Counter[str] = Counter()
    items = {}
    for answer in answers:
        name = answer.id if by_id and answer.id is not None else answer.prompt.key
        seen[name] += 1
        items[name if seen[name] == 1 else f"{name}#{seen[name]}"] = answer
    return items


def _shown(answer: GivenAnswer, *, by_id: bool) -> str:
    text = f"id {answer.id}" if by_id else answer.prompt.text
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _names(first: AnswerFile, second: AnswerFile) -> tuple[str, str]:
    """Two different names: of the systems, else of the files, else their paths with an ordinal."""
    for names in ((first.system, second.system), (_stem(first.path), _stem(second.path))):
        if names[0] != names[1]:
            return names
    return f"{first.path} (first)", f"{second.path} (second)"


def write_model_outputs(path: Path, file: AnswerFile) -> None:
    """Write AlpacaEval's ``model_outputs.json``: instruction, output, generator; every other field stays as it was.

    A conversation of several turns is written as its messages, which AlpacaEval itself does not read.
    """
    rows = []
    for answer in file.answers:
        messages = answer.prompt.messages
        instruction = messages[0].content if len(messages) == 1 else answer.prompt.as_messages()
        made = {"instruction": instruction, "output": answer.text, "generator": file.system}
        rows.append({**answer.row, **made})
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=2, default=str) + "\n")
