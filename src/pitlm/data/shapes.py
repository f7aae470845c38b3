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
from itertools import combinations
from math import isfinite
from operator import itemgetter
from typing import Any, NamedTuple

from pitlm.core.errors import describe, list_fields
from pitlm.data.row_fields import RowError, asked_field, check_read, decoded

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
    label: str
    names: tuple[str, str]


_TWO = (
    _Two("response_0", "response_1", "better_response_id", ("0", "1")),
    _Two("human_ref_A", "human_ref_B", "labels", ("1", "0")),
    _Two("conversation_a", "conversation_b", "winner", ("model_a", "model_b")),
    _Two("response_A", "response_B", "label", ("A>B", "B>A")),
    _Two("response1", "response2", "annotator1 annotator2 annotator3", ("1", "2")),
    _Two("output_1", "output_2", "label", ("1", "2")),
)
_LISTS = ("answers", "completions", "responses")
_TEXTS = ("answer", "response", "text", "content")
_RANKS = {"rank": -1, "score": 1, "overall_score": 1, "rating": 1}
"""Fields that order a list of answers, and the sign of better: the lowest rank is the best, and the highest score."""
_SCORES = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)  # fmt: skip
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
    check_read(row)
    asked = {} if (field := asked_field(row, ASKED)) is None else {"prompt": decoded(*field)}
    if field is not None and field[0] != "history" and row.get("history"):
        raise RowError("history", describe(row["history"]), f"nothing beside '{field[0]}': give all turns as messages")
    asked |= {"system": row["system"]} if "system" in row else {}
    if "chosen" in row and "rejected" in row:
        return [{**asked, **{side: _answer(row[side], side) for side in ("chosen", "rejected")}}]
    for two in _TWO:
        labels = two.label.split()
        if all(name in row for name in (*two[:2], *labels)):
            answers = [_answer(row[name], name) for name in two[:2]]
            named = Counter(str(row[name]).removesuffix(".0") for name in labels)
            better, count = named.most_common(1)[0]
            if (
                2 * count <= len(labels)
                or better.startswith(("tie", "A=B"))
                or (better == "0" and "0" not in two.names)
            ):
                raise RowDropped("ties")
            if better not in two.names:
                raise RowError(labels[0], describe(row[labels[0]]), " or ".join(two.names))
            first = two.names.index(better)
            return [{**asked, "chosen": answers[first], "rejected": answers[1 - first]}]
    for name in _LISTS:
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
    for names in _SCORES:
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
    for number, answer in enumerate(answers, start=1):
        if not isinstance(answer, Mapping):
            raise RowError(field, f"{describe(answer)} as answer {number}", "an object with an answer and its rank")
        text = next((name for name in _TEXTS if answer.get(name) is not None), None)
        rank = next((name for name in _RANKS if answer.get(name) is not None), None)
        if text is None or rank is None:
            expected = f"a text ({', '.join(_TEXTS)}) and a rank or score ({', '.join(_RANKS)})"
            raise RowError(field, f"the fields {list_fields(answer)} in answer {number}", expected)
        try:
            place = _RANKS[rank] * float(answer[rank])
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
