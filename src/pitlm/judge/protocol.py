"""What every judge is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pitlm.core.nouns import Advance
from pitlm.core.verdicts import Comparison, VerdictRow


class Judge(Protocol):
    """Says which of two responses is better. Swap the comparisons, and the verdicts swap."""

    @property
    def name(self) -> str: ...

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[VerdictRow]:
        """One row per comparison, in their order, seen from each one's first response."""
        ...
