"""Whether a judge prefers the answer that it is shown first, or second. Pure functions over verdict rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Unpack

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.statistics import Interval, Resampling, delta_interval, win_rate_interval


@dataclass(frozen=True, slots=True)
class PositionBias:
    """What one judge made of the rows that it was asked about in both orders.

    Attributes:
        rows: with a parsable reply in both orders; only these count.
        first_both: rows on which it chose what was shown first, both times; ``second_both`` likewise.
        consistent: share of rows with the same verdict in both orders.
        bias: share of replies that chose the first shown less share that chose the second, in [-1, 1]; 0 without bias.
    """

    judge: str
    rows: int
    first_both: int
    second_both: int
    consistent: Interval
    bias: Interval


def position_bias(rows: Iterable[VerdictRow], **how: Unpack[Resampling]) -> list[PositionBias]:
    """One line for each judge that was asked in both orders, by name; intervals are bootstraps over items (ours)."""
    asked: dict[str, list[tuple[str, Verdict, Verdict]]] = {}
    for row in rows:
        # The last parsable reply in each order counts: an earlier one was asked again.
        last = {reply.swapped: reply.verdict for reply in row.replies if reply.verdict is not Verdict.UNPARSABLE}
        if len(last) == 2:
            # Both verdicts as seen from the response that was shown first.
            asked.setdefault(row.judge, []).append((row.item, last[False], last[True].swap()))
    return [_bias(judge, shown, how) for judge, shown in sorted(asked.items())]


def _bias(judge: str, shown: Sequence[tuple[str, Verdict, Verdict]], how: Resampling) -> PositionBias:
    same = [(item, Verdict.WIN if a is b.swap() else Verdict.LOSS) for item, a, b in shown]
    return PositionBias(
        judge=judge,
        rows=len(shown),
        first_both=sum(a is b is Verdict.WIN for _, a, b in shown),
        second_both=sum(a is b is Verdict.LOSS for _, a, b in shown),
        consistent=win_rate_interval([VerdictRow(item, "same", "other", v) for item, v in same], **how),
        bias=delta_interval([VerdictRow(item, "first", "second", v) for item, *both in shown for v in both], **how),
    )
