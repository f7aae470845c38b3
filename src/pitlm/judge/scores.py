"""Judges that compare scores: the known truth, reward models, and the gap model in both orders."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.nouns import Advance, Improvement, Score
from pitlm.core.verdicts import Comparison, Reply, Verdict, VerdictRow
from pitlm.judge.protocol import Judge, TwoOrderJudge

Gap = Callable[[Sequence[Improvement]], list[float]]

TRUTH, HELD_OUT = "true utility", "held-out R_P"
"""Names of a run's own judge: the truth of a world, or a reward model trained on other pairs than R_P and R_PIT."""


@dataclass(frozen=True)
class ScoreJudge:
    """Prefers the response with the higher score.

    A score does not depend on the order in which two responses are shown, so the verdicts are always consistent.

    Attributes:
        name: the name of the judge in rows and tables.
        score: quality of each (x, y).
        tie: scores closer than this are a tie.
    """

    name: str
    score: Score
    tie: float = 1e-6

    def judge(self, comparisons: Sequence[Comparison], *, advance: Advance | None = None) -> list[VerdictRow]:
        """One row per comparison, seen from its first response; the row has no scores if one of the two is NaN."""
        texts = list(dict.fromkeys((pair.prompt, y) for pair in comparisons for y in (pair.first, pair.second)))
        scores = dict(zip(texts, self.score([x for x, _ in texts], [y for _, y in texts]), strict=True))
        if advance is not None:
            advance(len(comparisons))
        rows = []
        for pair in comparisons:
            first, second = scores[pair.prompt, pair.first], scores[pair.prompt, pair.second]
            verdict = _verdict(first - second, self.tie)
            kept = None if verdict is Verdict.UNPARSABLE else (first, second)
            rows.append(VerdictRow.of(pair, verdict, judge=self.name, scores=kept))
        return rows


@dataclass
class GapJudge(TwoOrderJudge):
    """R_PIT as a judge: the gap of the first response to the second, and of the second to the first.

    The gap model need not be antisymmetric, so the two orders can disagree; both gaps are kept as the replies.

    Attributes:
        gap: calibrated gap of each response to its reference, 0 for no change.
        tie: gaps closer to 0 than this are a tie.
    """

    name: str
    gap: Gap
    tie: float = 1e-6

    def ask(self, shown: Sequence[Comparison], attempt: int, advance: Advance) -> list[Reply]:
        gaps = self.gap([Improvement(pair.prompt, pair.second, pair.first) for pair in shown])
        advance(len(gaps))
        return [Reply(False, _verdict(gap, self.tie), "nan" if math.isnan(gap) else f"{gap:+.6f}") for gap in gaps]


def _verdict(difference: float, tie: float) -> Verdict:
    """The verdict on a difference of scores, or on a gap; unparsable if the difference is no finite number."""
    if not math.isfinite(difference):
        return Verdict.UNPARSABLE
    return Verdict.TIE if abs(difference) <= tie else Verdict.WIN if difference > 0 else Verdict.LOSS


def checkpoint_judge(section: JudgeSection) -> Judge:
    """The judge of a checkpoint: R_P, R_PIT or any other reward model.

    A checkpoint of pitlm has a file ``pit.json``, which says whether the checkpoint is R_P or R_PIT.

    Raises:
        InputError: ``section.model`` names no model that scores answers.
    """
    # Imported here, because it takes seconds to import torch, and the other judges need no torch.
    from pitlm.models.foreign import ForeignRewardModel
    from pitlm.models.loading import Card, quiet
    from pitlm.models.scorers import GapModel, RewardModel

    quiet()
    path = section.model or ""
    card = Card.load(path)
    if card is not None and card.kind == "gap":
        gap = GapModel.from_pretrained(path)
        return GapJudge(path, lambda items: gap.gaps(items).tolist())
    reward = RewardModel.from_pretrained(path) if card is not None else ForeignRewardModel.from_pretrained(path)
    return reward_judge(path, reward)


def reward_judge(name: str, model: Any) -> ScoreJudge:
    """The judge that takes its ``scores`` from a model such as :class:`pitlm.models.scorers.RewardModel`."""
    return ScoreJudge(name, lambda prompts, responses: model.scores(prompts, responses).tolist())
