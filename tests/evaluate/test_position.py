"""Position bias by hand."""

from __future__ import annotations

import pytest

from pitlm.core.verdicts import Reply, Verdict, VerdictRow
from pitlm.evaluate.position import position_bias

WIN, TIE, LOSS, UNPARSABLE = Verdict.WIN, Verdict.TIE, Verdict.LOSS, Verdict.UNPARSABLE


def asked(item: int, *verdicts: tuple[bool, Verdict], judge: str = "j") -> VerdictRow:
    replies = tuple(Reply(swapped, verdict) for swapped, verdict in verdicts)
    return VerdictRow(f"{item}", "a", "b", WIN, replies=replies, judge=judge)


def both(item: int, straight: Verdict, swapped: Verdict, judge: str = "j") -> VerdictRow:
    return asked(item, (False, straight), (True, swapped), judge=judge)


def test_table_by_hand():
    rows = [
        both(0, WIN, WIN),  # a wins in both orders: no position bias
        both(1, WIN, LOSS),  # the first shown wins in both orders
        both(2, WIN, LOSS),
        both(3, LOSS, WIN),  # the second shown wins in both orders
        both(4, TIE, WIN),  # a tie, then the second shown wins
        both(5, TIE, TIE),
        asked(6, (False, WIN)),  # one order only
        asked(7, (False, WIN), (True, UNPARSABLE)),
    ]
    [found] = position_bias(rows, resamples=100)
    assert (found.judge, found.rows, found.first_both, found.second_both) == ("j", 6, 2, 1)
    assert found.consistent.estimate == pytest.approx(2 / 6)
    # Twelve replies: first shown 1 + 2 + 2 = 5, second shown 1 + 2 + 1 = 4, three ties.
    assert found.bias.estimate == pytest.approx((5 - 4) / 12)
    assert found.bias.low <= found.bias.estimate <= found.bias.high


def test_swapping_rows_changes_nothing():
    rows = [both(0, WIN, LOSS), both(1, WIN, WIN), both(2, TIE, LOSS), both(3, LOSS, LOSS)]
    assert position_bias([row.swap() for row in rows], resamples=50) == position_bias(rows, resamples=50)


def test_a_reply_that_was_asked_again_counts_by_its_last_parsable_answer():
    again = asked(0, (False, UNPARSABLE), (True, LOSS), (False, WIN))
    assert position_bias([again], resamples=5)[0].first_both == 1


def test_judges_apart_and_none_without_replies():
    rows = [both(0, WIN, LOSS, judge="x"), both(0, WIN, WIN, judge="w"), VerdictRow("1", "a", "b", WIN, judge="z")]
    assert [(line.judge, line.bias.estimate) for line in position_bias(rows, resamples=5)] == [("w", 0), ("x", 1)]
    assert position_bias([]) == []
