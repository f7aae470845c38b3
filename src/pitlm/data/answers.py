"""Reads files of one system's answers, such as AlpacaEval's ``model_outputs.json``, and pairs two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.core.verdicts import Comparison
from pitlm.data.items import Item, parse_item
from pitlm.data.readers import RawRow, read_rows
from pitlm.data.row_fields import ANSWER_FIELDS, RowError, check_text, first_field

SHOWN = 60
"""Characters of a prompt in an error message."""


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """One system's answers, in the order of the file."""

    path: Path
    system: str
    answers: tuple[Item, ...]


def read_answers(path: Path) -> AnswerFile:
    """Read jsonl, json, csv or parquet rows.

    A row has the prompt as ``prompt``, ``messages`` or ``instruction`` (text or chat messages) and the answer as
    ``final``, ``response`` or ``output``; the first of these that it has counts. The system's name is
    the rows' ``generator``, or else the file's name.

    Raises:
        InputError: an unreadable file or row, no rows, or more than one generator.
    """
    path = Path(path)
    answers = [_answer(raw, number) for number, raw in enumerate(read_rows(path))]
    if not answers:
        raise InputError.at(path, found="no rows", expected="rows with a prompt and an answer")
    names = list(dict.fromkeys(str(answer.row["generator"]) for answer in answers if answer.row.get("generator")))
    if len(names) > 1:
        raise InputError.at(path, field="generator", found=", ".join(names[:3]), expected="one system's answers")
    return AnswerFile(path, names[0] if names else _stem(path), tuple(answers))


def _answer(raw: RawRow, number: int) -> Item:
    try:
        item = parse_item(raw, number, ANSWER_FIELDS)
        first_field(item.row, ANSWER_FIELDS)
        for name in ("id", "generator"):
            check_text(str(item.row.get(name)), name)
    except RowError as error:
        raise raw.error(error) from error
    return item


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def read_comparisons(first_file: Path, second_file: Path) -> list[Comparison]:
    """Put the answers of two files side by side, in the order of the first file.

    They are paired by ``id`` if every row has one, else by prompt. Answers of one id (or prompt) are paired in the
    order of appearance. A comparison's item is the id, or the prompt's key; repetitions are marked ``#2`` and so on.

    Raises:
        InputError: as :func:`read_answers` does; an answer that has no counterpart, or two prompts under one id.
    """
    first, second = read_answers(first_file), read_answers(second_file)
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
        comparisons.append(Comparison(answer.prompt, answer.response or "", other.response or "", item, systems))
    return comparisons


def _by_item(answers: Sequence[Item], *, by_id: bool) -> dict[str, Item]:
    seen: Counter[str] = Counter()
    items = {}
    for answer in answers:
        name = answer.id if by_id and answer.id is not None else answer.prompt.key
        seen[name] += 1
        items[name if seen[name] == 1 else f"{name}#{seen[name]}"] = answer
    return items


def _shown(answer: Item, *, by_id: bool) -> str:
    text = f"id {answer.id}" if by_id else answer.prompt.text
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _names(first: AnswerFile, second: AnswerFile) -> tuple[str, str]:
    """Two different names: those of the systems, or else of the files, or else their paths with an ordinal."""
    for names in ((first.system, second.system), (_stem(first.path), _stem(second.path))):
        if names[0] != names[1]:
            return names
    return f"{first.path} (first)", f"{second.path} (second)"
