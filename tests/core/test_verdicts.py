"""Judging's nouns: swapping, the two orders, and rows as JSON."""

import itertools
import json

import pytest

from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Reply, Verdict, VerdictRow

W, T, L, I, U = Verdict


@pytest.mark.parametrize(
    ("straight", "swapped", "expected"),
    [(W, W, W), (T, T, T), (L, L, L), (W, L, I), (W, T, I), (T, L, I), (U, W, U), (L, U, U), (U, U, U)],
)
def test_two_orders_make_one_verdict(straight, swapped, expected):
    assert Verdict.of_orders(straight, swapped) is expected


def test_the_outcome_of_two_orders_swaps_with_its_halves():
    for a, b in itertools.product(Verdict, repeat=2):
        assert Verdict.of_orders(a, b).swap() is Verdict.of_orders(b.swap(), a.swap())


def full_row():
    comparison = Comparison(Prompt.of("q"), "long", "s", item="7", systems=("pit", "original"))
    replies = (Reply(False, W, "A", "which?", 10, 2, 1, 0.5), Reply(True, L, "A", "which?", 10, 2, 1, 0.5))
    return VerdictRow.of(comparison, I, judge="llm", scores=(2.0, 1.0), strength=0.75, replies=replies)


def test_a_row_swaps_whole_and_back():
    row = full_row()
    other = row.swap()
    assert (other.first, other.second, other.lengths, other.strength) == ("original", "pit", (1, 4), 0.25)
    assert other.scores == (1.0, 2.0)
    assert [(r.swapped, r.verdict) for r in other.replies] == [(True, L), (False, W)]
    assert other.swap() == row


@pytest.mark.parametrize("row", [full_row(), VerdictRow("1", "a", "b", T)])
def test_a_row_survives_json(row):
    assert VerdictRow.from_dict(json.loads(json.dumps(row.as_dict()))) == row


def test_a_row_with_a_field_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="odd\n  Unexpected keyword argument"):
        VerdictRow.from_dict({**VerdictRow("1", "a", "b", T).as_dict(), "odd": 1})
