"""A margin for one scorer: chosen on some answers, shown on others, and beside the labels of held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pitlm.core.nouns import Advance, Improvement, Preference, Prompt, Trace
from pitlm.core.recipe import LoopSection
from pitlm.evaluate.gap_health import share
from pitlm.judge.scores import ScoreJudge
from pitlm.loop.chains import always_accept
from pitlm.loop.loop import GapScorer, Proposer
from pitlm.loop.margin import Chains, MarginOutcome, first_growth, rescored
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
    curve: Sequence[MarginOutcome]
    chosen: MarginOutcome
    always: MarginOutcome
    held_out: MarginOutcome
    held_out_always: MarginOutcome
    labels: MarginOutcome
    labels_alone: MarginOutcome

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: every outcome with the exact 95% interval of its share made worse."""
        rows = {name: getattr(self, name) for name in ("chosen", "always", "held_out", "held_out_always", "labels")}
        rows["labels_alone"] = self.labels_alone
        return {**{name: row(outcome) for name, outcome in rows.items()}, "curve": [row(one) for one in self.curve]}


def row(outcome: MarginOutcome) -> dict[str, Any]:
    """One outcome as plain JSON values, with the exact 95% interval of the share made worse."""
    harm = share(np.arange(outcome.items) < outcome.worse)
    finite = outcome.margin if math.isfinite(outcome.margin) else None
    return {**asdict(outcome), "margin": finite, "harm": harm}


def play(
    scorers: Mapping[str, GapScorer],
    sets: Sequence[Answered],
    *,
    improver: Proposer,
    settings: LoopSection,
    seed: int,
    advance: Advance | None = None,
) -> dict[str, list[list[Trace]]]:
    """ "Always accept" on each set of answers, by scorer. With one proposal a round it is played once, for all scorers.

    Args:
        advance: told how many rounds have just been finished, over all items; :func:`rounds_to_play` says of how many.
    """
    played: dict[str, list[list[Trace]]] = {}
    for name, gap in scorers.items():
        if played and settings.proposals == 1:
            played[name] = [rescored(traces, gap) for traces in next(iter(played.values()))]
            continue
        played[name] = [
            always_accept(
                answered.prompts,
                answered.responses,
                improver=improver,
                gap=gap,
                settings=settings,
                seed=seed,
                advance=advance,
            )
            for answered in sets
        ]
    return played


def rounds_to_play(scorers: int, sets: Sequence[Answered], settings: LoopSection) -> int:
    """How many rounds :func:`play` takes, over all items."""
    times = 1 if settings.proposals == 1 else scorers
    return times * settings.rounds * sum(len(answered.prompts) for answered in sets)


def calibrate(
    scorer: str,
    gap: GapScorer,
    *,
    choosing: Sequence[Trace],
    held_out: Sequence[Trace],
    settings: LoopSection,
    promise: Promise,
    pairs: Sequence[Preference],
    judge: ScoreJudge,
) -> Calibrated:
    """Choose the margin of one scorer on ``choosing``; ``held_out`` and ``pairs`` only show what it does.

    Args:
        choosing, held_out: what :func:`play` made of two sets of answers.

    Raises:
        InputError: no answers.
    """
    found, there = Chains.of(choosing, judge.score), Chains.of(held_out, judge.score)
    chosen, labels = found.choose(promise.harm, promise.confidence), _labelled(pairs, gap)
    return Calibrated(
        Calibration(
            scorer,
            chosen.margin,
            promise.harm,
            promise.confidence,
            chosen.items,
            judge.name,
            settings,
            tuple(round(trace.gaps[0], 4) for trace in choosing),
            tuple(round(value, 4) for value in first_growth(choosing)),
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
