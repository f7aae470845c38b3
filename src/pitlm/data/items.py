"""Rows with a prompt and, in most rows, an answer. A batch job improves such rows, and judges compare them.

Two files of answers, such as AlpacaEval's ``model_outputs.json``, become comparisons.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError, describe, list_fields
from pitlm.core.nouns import Prompt, Trace
from pitlm.core.verdicts import Comparison
from pitlm.data import row_fields
from pitlm.data.readers import RawRow, read_rows
from pitlm.data.row_fields import IMPROVED, PROMPT_FIELDS, RESPONSE_FIELDS, RowError

SHOWN = 60
"""Characters of a prompt in an error message."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row: its prompt, its response if it has one, the unchanged row, and its place in the input.

    ``number`` counts the rows of the input from 0.
    """

    number: int
    prompt: Prompt
    response: str | None
    row: Mapping[str, Any]
    where: str

    @property
    def id(self) -> str | None:
        """The field ``id`` as text; None if the row has no id, an empty id, or NaN, as pandas writes a missing id."""
        value = self.row.get("id")
        return None if value is None or value == "" or value != value else str(value)

    def improved(self, trace: Trace) -> dict[str, Any]:
        """The user's own fields as they are, and the trace in one field, :data:`IMPROVED`.

        Only AlpacaEval's ``output`` becomes the final answer, so that the file can be given to AlpacaEval as it is.
        """
        made = trace.as_dict()
        if any(name in self.row for name in PROMPT_FIELDS):
            del made["prompt"]
        output = {"output": trace.final} if "output" in self.row and "response" not in self.row else {}
        return {**self.row, **output, IMPROVED: made}


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that could not be improved: its number and place, the reason, and the unchanged row."""

    number: int
    where: str
    reason: str
    row: object

    def as_dict(self) -> dict[str, Any]:
        return {"where": self.where, "reason": self.reason, "row": self.row}


def _parse_item(raw: RawRow, number: int) -> Item:
    """Read one row, with its prompt (a string or messages) in ``prompt``, ``messages`` or ``instruction``.

    The response is the final answer of `pit improve` if the row has one, else ``response`` or ``output``.

    Raises:
        RowError: a row that could not be decoded, no prompt, a prompt or response of another type, or something beside
            text that belongs to the prompt.
    """
    row = raw.value()
    if not isinstance(row, Mapping):
        raise RowError(None, describe(row), "an object with 'prompt' and 'response'")
    asked = row_fields.asked_field(row, PROMPT_FIELDS)
    if asked is None:
        raise _lacks(row, PROMPT_FIELDS)
    prompt = row_fields.with_system(row_fields.read_prompt(asked[1], asked[0]), row.get("system"))
    response = None
    if (made := row.get(IMPROVED)) is not None:
        if not isinstance(made, Mapping) or "final" not in made:
            raise RowError(IMPROVED, describe(made), "what `pit improve` writes; rename your own field")
        response = row_fields.check_text(made["final"], f"{IMPROVED}.final")
    elif (answered := next((name for name in RESPONSE_FIELDS if row.get(name) is not None), None)) is not None:
        response = row_fields.check_text(row_fields.decoded(answered, row[answered]), answered)
    return Item(number, prompt, response, row, raw.where)


def _lacks(row: Mapping[str, Any], names: Sequence[str]) -> RowError:
    return RowError(None, f"the fields {list_fields(row)}", " or ".join(f"'{name}'" for name in names))


def read_items(path: Path) -> Iterator[Item | Failure]:
    """Yield one by one the rows of a file, a folder or a hub name; a row that cannot be read becomes a failure.

    Raises:
        InputError: nothing readable there, a file that is damaged as a whole, or no rows.
    """
    number = -1
    for number, raw in enumerate(read_rows(path)):
        try:
            yield _parse_item(raw, number)
        except RowError as error:
            yield Failure(number, raw.where, str(error), raw.raw)
    if number < 0:
        raise InputError.at(path, found="no rows", expected="one JSON object a line, with 'prompt' and 'response'")


def count_rows(path: Path) -> int | None:
    """The number of rows of a .jsonl file: lines that are not blank. None for other sources, which take longer."""
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return None
    with path.open("rb") as lines:
        return sum(not line.isspace() for line in lines)


def read_answers(path: Path) -> tuple[str, list[Item]]:
    """Read one system's answers: jsonl, json, csv or parquet rows.

    A row has prompt and answer as those of `pit improve` have them. The system's name is the rows' ``generator``, or
    else the file's name.

    Returns:
        The system's name, and its answers in the order of the file.

    Raises:
        InputError: an unreadable file or row, no rows, or more than one generator.
    """
    answers = []
    for number, raw in enumerate(read_rows(path)):
        with raw.errors_named():
            answer = _parse_item(raw, number)
            if answer.response is None:
                raise _lacks(answer.row, RESPONSE_FIELDS)
            for name in ("id", "generator"):
                row_fields.check_text(str(answer.row.get(name)), name)
        answers.append(answer)
    if not answers:
        raise InputError.at(path, found="no rows", expected="rows with a prompt and an answer")
    names = list(dict.fromkeys(str(answer.row["generator"]) for answer in answers if answer.row.get("generator")))
    if len(names) > 1:
        raise InputError.at(path, field="generator", found=", ".join(names[:3]), expected="one system's answers")
    return names[0] if names else _stem(path), answers


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def read_comparisons(first_file: Path, second_file: Path) -> list[Comparison]:
    """Put the answers of two files side by side, in the order of the first file.

    They are paired by ``id`` if every row has one, else by prompt. Answers of one id (or prompt) are paired in the
    order of appearance. A comparison's item is the id, or the prompt's key; repetitions are marked ``#2`` and so on.

    Raises:
        InputError: as :func:`read_answers` does; an answer that has no counterpart, or two prompts under one id.
    """
    first, first_answers = read_answers(first_file)
    second, second_answers = read_answers(second_file)
    by_id = all(answer.id is not None for answer in (*first_answers, *second_answers))
    ours, theirs = _by_item(first_answers, by_id=by_id), _by_item(second_answers, by_id=by_id)
    for here, there, own, others in ((first_file, second_file, ours, theirs), (second_file, first_file, theirs, ours)):
        lone = [answer for item, answer in own.items() if item not in others]
        if lone:
            shown, expected = (f"id {lone[0].id}", "ids") if by_id else (lone[0].prompt.text, "prompts")
            raise InputError(
                f"{here}: found {len(lone)} of {len(own)} answers with no counterpart in {there}, the first "
                f"at {lone[0].where} ({_clipped(shown)}); expected the same {expected}"
            )
    comparisons, systems = [], _names((first, second), (first_file, second_file))
    for item, answer in ours.items():
        other = theirs[item]
        if answer.prompt != other.prompt:
            raise InputError(
                f"{answer.where}: found another prompt than {other.where} has under the same id '{item}' "
                f"({_clipped(answer.prompt.text)}); expected the same prompt"
            )
        comparisons.append(Comparison(answer.prompt, answer.response or "", other.response or "", item, systems))
    return comparisons


def _by_item(answers: Sequence[Item], *, by_id: bool) -> dict[str, Item]:
    seen: Counter[str] = Counter()
    items = {}
    for answer in answers:
        name = answer.id if by_id and answer.id is not None else answer.prompt.key
        seen[name] += 1
        while (item := name if seen[name] == 1 else f"{name}#{seen[name]}") in items:
            seen[name] += 1  # another row has this very id
        items[item] = answer
    return items


def _clipped(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _names(systems: tuple[str, str], files: tuple[Path, Path]) -> tuple[str, str]:
    """Two different names: those of the systems, or else of the files, or else their paths with an ordinal."""
    for first, second in (systems, map(_stem, files)):
        if first != second:
            return first, second
    return f"{files[0]} (first)", f"{files[1]} (second)"
