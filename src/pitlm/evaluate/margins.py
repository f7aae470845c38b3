"""A margin for one scorer: chosen on some answers, shown on others, and beside the labels of held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pitlm.core.config import LoopSection
from pitlm.core.nouns import Improvement, Preference, Prompt
from pitlm.evaluate.health import share
from pitlm.improve.calibration import Chains, Outcome, always_accept
from pitlm.improve.health import first_growth
from pitlm.improve.loop import Advance, GapScorer, Proposer
from pitlm.judge.scores import ScoreJudge
from pitlm.models.calibration import Calibration

SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""The margins of the printed curve."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What the user wants: at most ``harm`` of the answers made worse, with this confidence."""

    harm: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Answered:
    """Prompts and the fresh answers that the loop starts from."""

    prompts: Sequence[Prompt]
    responses: Sequence[str]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration and what it rests on.

    Attributes:
        curve: what other margins do on the items that the margin was chosen on.
        chosen, always: what the margin, and accepting always, do there.
        held_out, held_out_always: the same on items that had no part in the choice.
        labels: the loop's margin on held-out pairs, of which one response is the reference and the other, whichever
            the labeller preferred, the proposal.
        labels_alone: the margin that these labels would ask for by themselves.
    """

    calibration: Calibration
    curve: Sequence[Outcome]
    chosen: Outcome
    always: Outcome
    held_out: Outcome
    held_out_always: Outcome
    labels: Outcome
    labels_alone: Outcome

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: every outcome with the exact 95% interval of its share made worse."""
        rows = {name: getattr(self, name) for name in ("chosen", "always", "held_out", "held_out_always", "labels")}
        rows["labels_alone"] = self.labels_alone
        return {**{name: row(outcome) for name, outcome in rows.items()}, "curve": [row(one) for one in self.curve]}


def row(outcome: Outcome) -> dict[str, Any]:
    """One outcome as plain JSON values, with the exact 95% interval of the share made worse."""
    harm = share(np.arange(outcome.items) < outcome.worse)
    finite = outcome.margin if math.isfinite(outcome.margin) else None
    return {**asdict(outcome), "margin": finite, "harm": harm}


def calibrate(
    scorer: str,
    gap: GapScorer,
    *,
    improver: Proposer,
    settings: LoopSection,
    promise: Promise,
    choosing: Answered,
    held_out: Answered,
    pairs: Sequence[Preference],
    judge: ScoreJudge,
    seed: int,
    advance: Advance | None = None,
) -> Calibrated:
    """Choose the margin of one scorer on ``choosing``; ``held_out`` and ``pairs`` only show what it does.

    Args:
        advance: told how many rounds of "always accept" have just been finished, over all items.

    Raises:
        InputError: no answers.
    """
    chains, shown = (
        always_accept(
            answered.prompts,
            answered.responses,
            improver=improver,
            gap=gap,
            settings=settings,
            seed=seed,
            advance=advance,
        )
        for answered in (choosing, held_out)
    )
    found, there = Chains.of(chains, judge.score), Chains.of(shown, judge.score)
    chosen, labels = found.choose(promise.harm, promise.confidence), _labelled(pairs, gap)
    first = tuple(round(trace.gaps[0], 4) for trace in chains)
    growth = tuple(round(value, 4) for value in first_growth(chains))
    return Calibrated(
        Calibration(
            scorer,
            chosen.margin,
            promise.harm,
            promise.confidence,
            chosen.items,
            judge.name,
            settings,
            first,
            growth,
        ),
        [found.at(margin) for margin in SHOWN],
        chosen,
        found.always(),
        there.at(chosen.margin),
        there.always(),
        labels.at(chosen.margin),
        labels.choose(promise.harm, promise.confidence),
    )


def _labelled(pairs: Sequence[Preference], gap: GapScorer) -> Chains:
    """Each held-out pair as one round: which response is the proposal is drawn by the prompt, not by the label."""
    better = np.array([int(pair.prompt.key, 16) % 2 == 0 for pair in pairs])
    items = [
        Improvement(pair.prompt, *((pair.rejected, pair.chosen) if up else (pair.chosen, pair.rejected)))
        for pair, up in zip(pairs, better, strict=True)
    ]
    gaps = np.array([float(value) for value in gap.gaps(items)])[:, None]
    quality = np.stack([np.zeros(len(items)), np.where(better, 1.0, -1.0)], 1)
    return Chains(gaps, np.ones_like(gaps, dtype=bool), np.zeros_like(gaps), quality)
