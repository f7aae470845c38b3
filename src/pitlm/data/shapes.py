"""The shapes in which data sets hold preferences. Each becomes rows with ``prompt``, ``chosen`` and ``rejected``.

- two answers and the better one's index or name (SafeRLHF, SHP, Chatbot Arena, JudgeBench, LLMBar, PandaLM);
- a list of answers with ranks or scores (Nectar, UltraFeedback): all pairs of different rank;
- single answers with a thumb up or down (KTO): all pairs of an answer with a thumb up and one with a thumb down.

If a prompt or a list has more than ``MOST_PAIRS`` such pairs, fewer are taken, so that they do not fill the memory.
Each answer of the upper half of a list is paired with the one half a list below it. Each answer of the more frequent
label is used once, with the answers of the other label in turn.

Messages may be objects, or text that JSON, Python or numpy made of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from itertools import combinations
from math import isfinite
from operator import itemgetter
from typing import Any, NamedTuple

import yaml

from pitlm.core.errors import describe, list_fields
from pitlm.data.row_fields import RowError, asked_field, decoded

ASKED = ("prompt", "instruction", "conversations", "history", "question", "input")
"""Fields that may have the prompt of a pair; ``history`` is SHP's, ``question`` JudgeBench's, ``input`` LLMBar's."""

MOST_PAIRS = 1000
"""Up to this number all pairs of a prompt or a list are taken."""

Row = Mapping[str, Any]


class RowDropped(Exception):
    """A valid row with nothing to learn from. The message is the reason; rows are counted by reason."""


class _Two(NamedTuple):
    """Two answers side by side, the fields that name the better one, and the names of the first and the second.

    Of several such fields, as of three annotators, more than half have to name one answer.
    """

    first: str
    second: str
    labels: list[str]
    names: list[str]


_FIELDS: Mapping[str, Any] = yaml.safe_load(files("pitlm.data").joinpath("shapes.yaml").read_text("utf-8"))
"""The names of fields in the data sets that are known."""
_TWO = [_Two(**two) for two in _FIELDS["two"]]
_THUMBS = {"true": True, "1": True, "false": False, "0": False}


def renamed(row: object, columns: Mapping[Any, str]) -> object:
    """The row with its columns under the names of fields. ``columns`` has the column of each field.

    Raises:
        RowError: a column that the row does not have.
    """
    if not columns or not isinstance(row, Mapping):
        return row
    for field, column in columns.items():
        if column not in row:
            raise RowError(field, f"no column '{column}' (the row has {list_fields(row)})", "it: --columns names it")
    return {**{k: v for k, v in row.items() if k not in columns.values()}, **{f: row[c] for f, c in columns.items()}}


def pairs_in(row: Row) -> list[Row]:
    """The pairs in a row of any shape; a row of no known shape comes back as it is.

    Raises:
        RowError: a field that cannot be read, or a column that belongs to the prompt and is no text.
        RowDropped: a tie, or answers of one rank.
    """
    asked = {} if (field := asked_field(row, ASKED)) is None else {"prompt": decoded(*field)}
    if field is not None and field[0] != "history" and row.get("history"):
        raise RowError("history", describe(row["history"]), f"nothing beside '{field[0]}': give all turns as messages")
    asked |= {"system": row["system"]} if "system" in row else {}
    if "chosen" in row and "rejected" in row:
        return [{**asked, **{side: _answer(row[side], side) for side in ("chosen", "rejected")}}]
    for two in _TWO:
        if all(name in row for name in (*two[:2], *two.labels)):
            answers = [_answer(row[name], name) for name in two[:2]]
            [(better, count)] = Counter(str(row[name]).removesuffix(".0") for name in two.labels).most_common(1)
            tied = better.startswith(("tie", "A=B")) or (better == "0" and "0" not in two.names)
            if tied or 2 * count <= len(two.labels):
                raise RowDropped("ties")
            if better not in two.names:
                raise RowError(two.labels[0], describe(row[two.labels[0]]), " or ".join(two.names))
            first = two.names.index(better)
            return [{**asked, "chosen": answers[first], "rejected": answers[1 - first]}]
    for name in _FIELDS["lists"]:
        if isinstance(row.get(name), list | tuple):
            return [{**asked, "chosen": w, "rejected": l} for w, l in _ranked(row[name], name)]
    return [row]


def is_rated(row: Row) -> bool:
    """Whether a row has one answer with a thumb up or down, as KTO reads it."""
    return "completion" in row and "label" in row and "chosen" not in row


def thumb(row: Row) -> bool:
    """Whether the answer of a rated row has a thumb up.

    Raises:
        RowError: the label is neither true nor false.
    """
    value = str(row["label"]).lower().removesuffix(".0")
    if value not in _THUMBS:
        raise RowError("label", describe(row["label"]), "true or false")
    return _THUMBS[value]


def scores_contradict(row: object) -> bool:
    """Whether the row's own scores prefer the rejected answer."""
    if not isinstance(row, Mapping):
        return False
    for names in _FIELDS["scores"]:
        try:
            chosen, rejected = (float(row[name]) for name in names)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        return chosen < rejected
    return False


def _answer(value: object, field: str) -> object:
    """A text, or a list of messages; a lone message is such a list."""
    value = decoded(field, value)
    return [value] if isinstance(value, Mapping) and ("role" in value or "from" in value) else value


def _ranked(answers: Iterable[object], field: str) -> Iterator[tuple[object, object]]:
    """Pairs of a better and a worse answer, in the order of the list.

    Raises:
        RowError: an answer without text or rank.
        RowDropped: all answers have one rank.
    """
    found: list[tuple[float, object]] = []
    texts, ranks = _FIELDS["texts"], _FIELDS["ranks"]
    for number, answer in enumerate(answers, start=1):
        if not isinstance(answer, Mapping):
            raise RowError(field, f"{describe(answer)} as answer {number}", "an object with an answer and its rank")
        text = next((name for name in texts if answer.get(name) is not None), None)
        rank = next((name for name in ranks if answer.get(name) is not None), None)
        if text is None or rank is None:
            expected = f"a text ({', '.join(texts)}) and a rank or score ({', '.join(ranks)})"
            raise RowError(field, f"the fields {list_fields(answer)} in answer {number}", expected)
        try:
            place = ranks[rank] * float(answer[rank])
        except (TypeError, ValueError, OverflowError):
            place = float("nan")
        if not isfinite(place):
            raise RowError(field, f"{describe(answer[rank])} as the {rank} of answer {number}", "a number")
        found.append((place, _answer(answer[text], field)))
    ordered = sorted(found, key=itemgetter(0), reverse=True)
    few = len(found) * (len(found) - 1) // 2 <= MOST_PAIRS
    both = combinations(found, 2) if few else zip(ordered, ordered[len(found) // 2 :], strict=False)
    pairs = [(a, b) if r > s else (b, a) for (r, a), (s, b) in both if r != s]
    if not pairs:
        raise RowDropped("equal ranks")
    return iter(pairs)
