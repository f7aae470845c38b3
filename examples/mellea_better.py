"""R_PIT as a mellea requirement: "better than this answer", by what the preference data taught, without a rubric.

    pit serve --gap runs/mine/gap/model --port 8003

    from mellea_better import better_than, improved
    improved(session, "How do I boil an egg?")                     # the whole loop
    session.validate([better_than("How do I boil an egg?", "In water.")])   # or the requirement alone

The requirement is only checked (`check_only`): mellea does not put its words into the prompt. Its score is the gap.
If no answer within the budget meets the requirement, or if `pit serve` cannot be reached, the first answer stays.

Tested with mellea 0.8.0 (docs/real.md). Needs gap_client.py of the same folder (docs/frameworks.md).
"""

from __future__ import annotations

from typing import Any

import httpx
from gap_client import gap, margin
from mellea.core import Context, Requirement, ValidationResult
from mellea.stdlib.sampling import RejectionSamplingStrategy


def better_than(question: str, reference: str) -> Requirement:
    """The requirement that R_PIT finds an answer to ``question`` better than ``reference``, by more than the margin."""

    def validate(context: Context) -> ValidationResult:
        try:
            found, least = gap(question, reference, str(context.last_output())), margin()
        except httpx.HTTPError as error:
            return ValidationResult(False, reason=f"no gap: {type(error).__name__}")
        return ValidationResult(found > least, score=found, reason=f"the gap is {found:.2f}, the margin {least:.2f}")

    return Requirement("The answer is better than the first answer.", validation_fn=validate, check_only=True)


def improved(session: Any, question: str, budget: int = 3) -> str:
    """Answer, then answer again up to ``budget`` times until R_PIT prefers the new answer; else the first answer."""
    first = str(session.instruct(question, strategy=None))
    sampled = session.instruct(
        question,
        requirements=[better_than(question, first)],
        strategy=RejectionSamplingStrategy(loop_budget=budget),
        return_sampling_results=True,
    )
    return str(sampled.result) if sampled.success else first
