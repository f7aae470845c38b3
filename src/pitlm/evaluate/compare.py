"""Systems against the original on held-out prompts: answers, verdict rows, and what each system cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pitlm.core.nouns import Answer, Prompt
from pitlm.core.verdicts import VerdictRow
from pitlm.evaluate.statistics import (
    Interval,
    Tally,
    delta_interval,
    mean_interval,
    paired_difference,
    rows_for,
    tally,
    win_rate_interval,
)
from pitlm.judge.scores import ScoreJudge

ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system against the original: rates are fractions, lengths and costs are tokens per item.

    Attributes:
        gain_per_100_tokens: the quality that 100 generated tokens add to the original's; None where none were. Its
            interval is that of the gain: the tokens are taken as they were counted.
    """

    name: str
    tally: Tally
    delta: Interval
    quality: Interval
    win_rate: Interval
    copy_rate: float
    answer_tokens: float
    generated_tokens: float
    prompt_tokens: float
    gain_per_100_tokens: Interval | None


def judge_systems(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]], judge: ScoreJudge
) -> tuple[list[VerdictRow], dict[str, list[float]]]:
    """Compare every system with the original, item by item.

    Args:
        answers: one answer per prompt and system; ``original`` must be among the systems.

    Returns:
        One row per item and system (the original left out), and each system's scores.
    """
    scores = {name: judge.score(prompts, [answer.text for answer in given]) for name, given in answers.items()}
    base = scores[ORIGINAL]
    rows = [
        VerdictRow(f"{item:05d}", name, ORIGINAL, judge.verdict(mine, theirs), (mine, theirs))
        for name, own in scores.items()
        if name != ORIGINAL
        for item, (mine, theirs) in enumerate(zip(own, base, strict=True))
    ]
    return rows, scores


def summarise(
    rows: Sequence[VerdictRow],
    answers: Mapping[str, Sequence[Answer]],
    scores: Mapping[str, Sequence[float]],
    lengths: Mapping[str, Sequence[int]],
    *,
    resamples: int,
) -> list[SystemResult]:
    """One line per system; the original's own line has an empty tally and Delta 0.

    Args:
        lengths: tokens of each answer.
    """
    originals = [answer.text for answer in answers[ORIGINAL]]
    results = []
    for name, given in answers.items():
        own = rows_for(rows, name, ORIGINAL)
        gains = [mine - theirs for mine, theirs in zip(scores[name], scores[ORIGINAL], strict=True)]
        tokens = float(np.mean([answer.generated_tokens for answer in given]))
        results.append(
            SystemResult(
                name=name,
                tally=tally(own),
                delta=delta_interval(own, resamples=resamples) if own else Interval(0.0, 0.0, 0.0),
                quality=mean_interval(scores[name], resamples=resamples),
                win_rate=win_rate_interval(own, resamples=resamples) if own else Interval(0.0, 0.0, 0.0),
                copy_rate=float(np.mean([answer.text == y for answer, y in zip(given, originals, strict=True)])),
                answer_tokens=float(np.mean(lengths[name])),
                generated_tokens=tokens,
                prompt_tokens=float(np.mean([answer.prompt_tokens for answer in given])),
                gain_per_100_tokens=_scaled(mean_interval(gains, resamples=resamples), tokens / 100),
            )
        )
    return results


def _scaled(gain: Interval, tokens: float) -> Interval | None:
    """The interval of a mean, by hundreds of tokens."""
    if not tokens:
        return None
    return replace(gain, estimate=gain.estimate / tokens, low=gain.low / tokens, high=gain.high / tokens)


def difference(rows: Sequence[VerdictRow], first: str, second: str, *, resamples: int) -> Interval:
    """Delta of ``first`` minus Delta of ``second``, both against the original, paired by item."""
    return paired_difference(rows_for(rows, first, ORIGINAL), rows_for(rows, second, ORIGINAL), resamples=resamples)
