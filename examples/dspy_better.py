"""R_PIT as the reward of dspy.BestOfN and dspy.Refine: a module that answers again until R_PIT prefers the new answer.

    pit serve --gap runs/mine/gap/model --port 8003

    from dspy_better import Better
    answers = Better(dspy.Predict("question -> answer"))            # or search=dspy.Refine
    answers(question="How do I boil an egg?").answer

The module's own first answer is the reference. The reward of a further answer is its gap to the first answer. The
search ends with the first answer whose gap is above the margin. If there is none within `n` tries, or if `pit serve`
cannot be reached, the first answer stays. DSPy prints why a try failed. dspy.Refine shows the source of the reward
function to the language model; there is no rubric in it.

Tested with dspy 3.4.1 (docs/real.md). Needs gap_client.py of the same folder (docs/frameworks.md).
"""

from __future__ import annotations

import math
from typing import Any

import dspy
import httpx
from gap_client import gap, margin


class Better(dspy.Module):  # type: ignore[misc]
    """Answers with the first answer of ``answers`` that R_PIT finds better than the first of all.

    Args:
        answers: a module with an input ``question`` and an output ``answer``.
        search: ``dspy.BestOfN`` or ``dspy.Refine``.
        n: most further answers.
    """

    def __init__(self, answers: Any, search: Any = dspy.BestOfN, n: int = 3) -> None:
        super().__init__()
        self.answers, self.search, self.n = answers, search, n

    def forward(self, question: str) -> Any:
        first = self.answers(question=question)
        try:
            least = margin()
        except httpx.HTTPError:
            return first

        gaps: dict[str, float] = {}

        def reward(asked: dict[str, Any], given: Any) -> float:
            gaps[given.answer] = gap(question, first.answer, given.answer)
            return gaps[given.answer]

        above = math.nextafter(least, math.inf)
        found = self.search(self.answers, N=self.n, reward_fn=reward, threshold=above)(question=question)
        return found if found is not None and gaps[found.answer] > least else first
