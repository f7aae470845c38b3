"""Judges against labels: how often a judge agrees with people, and whether it prefers longer answers than they do."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.data.dataset import load_preferences
from pitlm.data.readers import read_rows
from pitlm.evaluate.statistics import CONFIDENCE, SIGNS, Interval, paired_difference, win_rate_interval
from pitlm.evaluate.verdict_files import read_verdicts

WIN, LOSS = Verdict.WIN, Verdict.LOSS

Label = Callable[[VerdictRow], Verdict | None]
"""The label of a row, seen from the row's first system; None without a label."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One judge on the rows that have a label for one side.

    Attributes:
        labelled: the number of these rows.
        strict: share of them whose verdict is the label: right in both orders, if the judge was asked in both. An
            unparsable verdict is not right.
        lenient: share as JudgeBench counts it (arXiv:2410.12784): a win in one order and a tie in the other is a win.
            An order that cannot be parsed counts as a tie.
        longer: share of the longer answers that the judge chose less the share that the labels chose, where the answers
            differ in length; a tie is half a choice.
    """

    judge: str
    labelled: int
    strict: Interval
    lenient: Interval
    longer: Interval


def read_labels(source: Path) -> Label:
    """Labels from verdict rows, such as people's votes, or from preferences of any shape that pitlm reads.

    A verdict row belongs to the label of the same item and systems. A preference has no systems: it belongs to the row
    whose item is its ``id`` or the key of its prompt, and whose answers have the lengths of its answers. Of
    several labels more than half have to agree. Preferences whose answers are equally long are no labels.

    Raises:
        InputError: nothing readable there.
    """
    first = next((raw.raw for raw in read_rows(source)), None)
    if isinstance(first, Mapping) and "verdict" in first:
        rows = [row for found in read_verdicts([source]) for row in (found.row, found.row.swap())]
        by_systems = _agreed(((row.item, row.first, row.second), row.verdict) for row in rows)
        return lambda row: by_systems.get((row.item, row.first, row.second))
    loaded = load_preferences(source, skip_invalid=True)
    labels = _agreed(
        ((item, sides), verdict)
        for pair, (_, name) in zip(loaded.preferences, loaded.origins, strict=True)
        for lengths in [(len(pair.chosen), len(pair.rejected))]
        for item in {pair.prompt.key, name}
        for sides, verdict in ((lengths, WIN), (lengths[::-1], LOSS))
    )
    # "#2" marks a repeated prompt, but may also belong to an id.
    return lambda row: labels.get((row.item, row.lengths)) or labels.get((row.item.partition("#")[0], row.lengths))


def _agreed(told: Iterable[tuple[Any, Verdict]]) -> dict[Any, Verdict]:
    """The verdict of each key that more than half of its verdicts name."""
    votes: dict[Any, Counter[Verdict]] = {}
    for key, verdict in told:
        votes.setdefault(key, Counter())[verdict] += verdict is not Verdict.UNPARSABLE
    most = {key: own.most_common(1)[0] for key, own in votes.items()}
    return {key: verdict for key, (verdict, count) in most.items() if 2 * count > votes[key].total()}


def accuracies(rows: Iterable[VerdictRow], label: Label, *, confidence: float = CONFIDENCE) -> list[Accuracy]:
    """One entry for each judge with a labelled row, sorted by name. Intervals are over items.

    Raises:
        InputError: no row has a label.
    """
    labelled: dict[str, list[tuple[VerdictRow, Verdict]]] = {}
    for row in rows:
        if (gold := label(row)) in (WIN, LOSS):
            labelled.setdefault(row.judge, []).append((row, gold))
    if not labelled:
        raise InputError("--labels: found no label for any verdict, expected labels for the same prompts and answers")
    found = []
    for judge, own in sorted(labelled.items()):
        strict, lenient = (
            win_rate_interval([_right(row, gold, told(row)) for row, gold in own], confidence=confidence)
            for told in (lambda row: row.verdict, _both_orders)
        )
        uneven = [(row, gold) for row, gold in own if row.lengths is not None and row.lengths[0] != row.lengths[1]]
        judged = [_longer(row, row.verdict) for row, _ in uneven]
        longer = paired_difference(judged, [_longer(row, gold) for row, gold in uneven], confidence=confidence)
        half = Interval(longer.estimate / 2, longer.low / 2, longer.high / 2, confidence)
        found.append(Accuracy(judge, len(own), strict, lenient, half))
    return found


def _right(row: VerdictRow, gold: Verdict, verdict: Verdict) -> VerdictRow:
    return VerdictRow(row.item, "right", "wrong", WIN if verdict is gold else LOSS)


def _both_orders(row: VerdictRow) -> Verdict:
    """The verdict by the sum of both orders: a win and a tie is a win. A row without replies has only its verdict."""
    last = {reply.swapped: SIGNS.get(reply.verdict, 0.0) for reply in row.replies}
    total = sum(last.values())
    return row.verdict if not last else WIN if total > 0 else LOSS if total < 0 else Verdict.TIE


def _longer(row: VerdictRow, verdict: Verdict) -> VerdictRow:
    """The verdict as seen from the longer answer."""
    assert row.lengths is not None
    return VerdictRow(row.item, "longer", "shorter", verdict if row.lengths[0] > row.lengths[1] else verdict.swap())
