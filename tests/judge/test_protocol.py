"""What all judges share that see each pair in both orders."""

from __future__ import annotations

import pytest

from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Reply, Verdict
from pitlm.judge.protocol import row_of_replies

W, T, L, I, U = Verdict


@pytest.mark.parametrize(
    ("straight", "swapped", "expected"),
    [([W], [W], W), ([W], [L], I), ([W], [T], I), ([T], [T], T), ([U], [W], U), ([U, W], [W], W), ([W], [U, U], U)],
)
def test_of_each_order_the_last_reply_counts_and_all_are_kept(straight, swapped, expected):
    replies = [Reply(False, v) for v in straight] + [Reply(True, v) for v in swapped]
    row = row_of_replies(Comparison(Prompt.of("q"), "a", "bb", "7", ("m", "n")), replies, "j")
    assert (row.verdict, row.replies, row.item, row.judge) == (expected, tuple(replies), "7", "j")
    assert (row.first, row.second, row.lengths) == ("m", "n", (1, 2))
