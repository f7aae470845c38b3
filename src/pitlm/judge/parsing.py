"""A judge's reply in words to a verdict: pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pitlm.core.verdicts import Comparison, Reply, Verdict, VerdictRow

# ASCII only: a letter that merely looks like A is not A.
_VERDICT = re.compile(r"verdict\s*:\s*(a|b|tie)\.?", re.ASCII | re.IGNORECASE)
_MARKUP = str.maketrans("", "", "*_`#[]")
_VERDICTS = {"a": Verdict.WIN, "b": Verdict.LOSS, "tie": Verdict.TIE}


def parse_verdict(text: str) -> Verdict:
    """The verdict on the last line that is not empty: ``Verdict: A``, ``Verdict: B`` or ``Verdict: tie``.

    Win means that the answer shown as A is better. Case, Markdown around it and a full stop do not matter; anything
    else on that line, or no such line, is unparsable. No other line counts, so what a judge quotes of an answer, or
    considers on the way, is no verdict.
    """
    # Not splitlines: a separator that no judge writes, out of an answer that it quotes, would begin a line of its own.
    lines = [line for line in text.split("\n") if line.strip()]
    match = _VERDICT.fullmatch(lines[-1].translate(_MARKUP).strip()) if lines else None
    return _VERDICTS[match[1].lower()] if match else Verdict.UNPARSABLE


def row_of_replies(comparison: Comparison, replies: Sequence[Reply], judge: str) -> VerdictRow:
    """The row of a comparison that was asked about in both orders; of each order the last reply counts."""
    straight, swapped = ([r for r in replies if r.swapped is order][-1] for order in (False, True))
    verdict = Verdict.of_orders(straight.verdict, swapped.verdict)
    return VerdictRow.of(comparison, verdict, judge=judge, replies=tuple(replies))
