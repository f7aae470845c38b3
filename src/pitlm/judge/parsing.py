"""Reading the verdict in a judge's reply: a pure function."""

from __future__ import annotations

import re

from pitlm.core.verdicts import Verdict

# ASCII only: a letter that merely looks like A is not A.
_VERDICT = re.compile(r"verdict\s*:\s*(a|b|tie)\.?", re.ASCII | re.IGNORECASE)
_MARKUP = str.maketrans("", "", "*_`#[]")
_VERDICTS = {"a": Verdict.WIN, "b": Verdict.LOSS, "tie": Verdict.TIE}


def parse_verdict(text: str) -> Verdict:
    """The verdict on the last line that is not empty: ``Verdict: A``, ``Verdict: B`` or ``Verdict: tie``.

    Win means that the answer shown as A is better. Case, Markdown around the verdict and a full stop do not matter.
    Anything else on that line, or no such line, is unparsable. No other line counts, so a verdict that the judge quotes
    from an answer, or considers on the way, is none.
    """
    # Not splitlines: a separator that no judge writes, out of an answer that it quotes, would begin a line of its own.
    lines = [line for line in text.split("\n") if line.strip()]
    match = _VERDICT.fullmatch(lines[-1].translate(_MARKUP).strip()) if lines else None
    return _VERDICTS[match[1].lower()] if match else Verdict.UNPARSABLE
