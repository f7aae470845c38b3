"""How large the margin must be so that no more answers are made worse than was promised. Not in the paper.

"Always accept" is run once. Every margin is then replayed on the traces of this run: a loop sees the same rounds up to
the first proposal that it does not accept. The margin is chosen by Learn then Test (Angelopoulos, Bates, Candes,
Jordan, Lei 2021, arXiv:2110.01052) with fixed-sequence testing. Margins are tested from the largest down, each
with the exact binomial test of "the share made worse is above the promise". The last margin before the first test that
fails is taken. With probability ``confidence`` over the calibration's items, the loop then makes no larger share of new
answers worse than promised.

The only assumption is that the items are exchangeable with those to come. Conformal risk control (arXiv:2208.02814)
would also assume that a larger margin brings less harm. With several rounds a larger margin may do more harm, because
a loop that stops earlier may stop at a worse answer. The promise is about the verdicts of the judge that was asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Improvement, Preference, Prompt, Score, Trace
from pitlm.io.templates import template
from pitlm.loop.calibration import Calibration, Promise
from pitlm.loop.chains import first_growth, incumbents, play
from pitlm.loop.loop import GapScorer, Proposer

MARGINS = tuple(step / 16 for step in range(256, -1, -1))
"""The margins that are tested, in log odds, the safest first. They are fixed beforehand, as the guarantee asks."""

SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""The margins of the printed curve."""

TIE = 1e-6
"""Qualities closer than this are equal."""

Floats = NDArray[np.float64]
Answers = Sequence[tuple[Prompt, str]]
"""Each x with its y_0."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of the loop with one margin on the items of the calibration.

    Attributes:
        margin: minus infinity for "always accept".
        worse: number of items whose final answer the judge finds worse than the original.
        gain: mean quality of the final answer minus that of the original, in the judge's unit.
        tokens: mean of the generated tokens per item.
    """

    margin: float
    items: int
    worse: int
    gain: float
    tokens: float

    @property
    def harm(self) -> float:
        """Share of the items made worse."""
        return self.worse / self.items

    def refutes(self, harm: float, confidence: float) -> bool:
        """Whether "the true share made worse is above ``harm``" is refuted (exact one-sided binomial test)."""
        return bool(binomtest(self.worse, self.items, harm, alternative="less").pvalue <= 1 - confidence)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the exact 95% interval of the share made worse."""
        interval = binomtest(self.worse, self.items).proportion_ci(0.95)
        harm = {"estimate": self.harm, "low": float(interval.low), "high": float(interval.high), "n": self.items}
        return {**asdict(self), "margin": self.margin if math.isfinite(self.margin) else None, "harm": harm}


@dataclass(frozen=True)
class Chains:
    """The rounds of "always accept" on N items, R rounds each; replays the loop with any margin.

    Attributes:
        gap_NR: gap of each round's best proposal to its incumbent.
        changed_NR: whether that proposal differs from the incumbent.
        token_NR: tokens generated in each round.
        quality_NQ: quality of the original and of the incumbent after each round, by the judge; Q = R + 1.
    """

    gap_NR: Floats
    changed_NR: NDArray[np.bool_]
    token_NR: Floats
    quality_NQ: Floats

    @classmethod
    def of(cls, traces: Sequence[Trace], score: Score) -> Chains:
        """From the traces of :func:`pitlm.loop.chains.always_accept`, judged by ``score``.

        Raises:
            InputError: no traces.
        """
        if not traces:
            raise InputError("calibration: found no answers, expected some")
        judged = [(trace.prompt, text) for trace in traces for text in incumbents(trace)]
        quality = score([prompt for prompt, _ in judged], [text for _, text in judged])
        return cls(
            np.array([trace.gaps for trace in traces]),
            np.array([[r.accepted for r in trace.rounds] for trace in traces]),
            np.array([[r.tokens for r in trace.rounds] for trace in traces], dtype=np.float64),
            np.array(quality, dtype=np.float64).reshape(len(traces), -1),
        )

    @classmethod
    def of_labels(cls, pairs: Sequence[Preference], gap: GapScorer) -> Chains:
        """Each labelled pair as one round. The prompt, and not the label, decides which response is the proposal."""
        better = np.array([int(pair.prompt.key, 16) % 2 == 0 for pair in pairs])
        items = [
            Improvement(pair.prompt, *((pair.rejected, pair.chosen) if up else (pair.chosen, pair.rejected)))
            for pair, up in zip(pairs, better, strict=True)
        ]
        gaps = np.array([float(value) for value in gap.gaps(items)])[:, None]
        quality = np.stack([np.zeros(len(items)), np.where(better, 1.0, -1.0)], 1)
        return cls(gaps, np.ones_like(gaps, dtype=bool), np.zeros_like(gaps), quality)

    def at(self, margin: float) -> Outcome:
        """The outcome of the loop with this margin; with minus infinity, of "always accept" itself."""
        items, rounds = self.gap_NR.shape
        accepted_N = ((self.changed_NR & (self.gap_NR > margin)) | (margin == -math.inf)).cumprod(1).sum(1)
        change_N = np.take_along_axis(self.quality_NQ, accepted_N[:, None], 1)[:, 0] - self.quality_NQ[:, 0]
        played_N = np.minimum(accepted_N + 1, rounds) if margin < math.inf else accepted_N  # infinity: asks for nothing
        spent_N = np.take_along_axis(np.pad(self.token_NR.cumsum(1), ((0, 0), (1, 0))), played_N[:, None], 1)
        return Outcome(margin, items, int((change_N < -TIE).sum()), float(change_N.mean()), float(spent_N.mean()))

    def choose(self, harm: float, confidence: float) -> Outcome:
        """The outcome of the smallest margin that passes its test with all larger margins; else of infinity.

        Args:
            harm: the share of answers that may be made worse, in (0, 1).
            confidence: the probability with which the promise has to hold, in (0, 1).
        """
        chosen = self.at(math.inf)  # it changes nothing, so it needs no test
        for margin in MARGINS:
            outcome = self.at(margin)
            if not outcome.refutes(harm, confidence):
                break
            chosen = outcome
        return chosen


@dataclass(frozen=True)
class Calibrated:
    """A calibration and its evidence.

    Attributes:
        curve: outcomes of other margins on the items that the margin was chosen on.
        chosen, always: outcomes of the margin and of "always accept" on these items.
        held_out, held_out_always: these two outcomes on items that had no part in the choice.
        labels: outcome of the margin on held-out pairs, with one response as the reference and the other as the
            proposal, whichever the labeller preferred.
        labels_alone: outcome of the margin that these labels would ask for by themselves.
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
        """The outcomes as plain JSON values, by name, and the curve."""
        rows = {one.name: getattr(self, one.name).as_dict() for one in fields(self)[2:]}
        return {**rows, "curve": [outcome.as_dict() for outcome in self.curve]}

    def sentences(self) -> list[str]:
        """The promise and what the labels say, for a person to read."""
        made, words = self.calibration, template("pitlm.loop", "promise.j2")
        needed = items_needed(made.harm, made.confidence)
        return words.render(made=made, labels=self.labels, alone=self.labels_alone.margin, needed=needed).splitlines()


def calibrate(
    scorers: Mapping[str, GapScorer],
    choosing: Answers,
    shown: Answers,
    *,
    improver: Proposer,
    settings: LoopSection,
    promise: Promise,
    pairs: Sequence[Preference],
    judge: str,
    score: Score,
    seed: int,
) -> dict[str, Calibrated]:
    """Choose the margin of each scorer on ``choosing``; ``shown`` and ``pairs`` only show what the margin does.

    Args:
        scorers: the scorers by name.
        choosing, shown: two sets of first answers, for which "always accept" is run.
        judge, score: name of the judge, and its quality of each (x, y).

    Raises:
        InputError: no answers.
    """
    made: dict[str, Calibrated] = {}
    for name, played in play(scorers, (choosing, shown), improver=improver, settings=settings, seed=seed).items():
        found, held_out = (Chains.of(traces, score) for traces in played)
        labels = Chains.of_labels(pairs, scorers[name])
        chosen = found.choose(promise.harm, promise.confidence)
        calibration = Calibration(
            scorer=name,
            margin=chosen.margin,
            harm=promise.harm,
            confidence=promise.confidence,
            items=chosen.items,
            judge=judge,
            settings=settings,
            gaps=tuple(round(trace.gaps[0], 4) for trace in played[0] if math.isfinite(trace.gaps[0])),
            growth=tuple(round(value, 4) for value in first_growth(played[0])),
        )
        made[name] = Calibrated(
            calibration,
            curve=[found.at(margin) for margin in SHOWN],
            chosen=chosen,
            always=found.at(-math.inf),
            held_out=held_out.at(chosen.margin),
            held_out_always=held_out.at(-math.inf),
            labels=labels.at(chosen.margin),
            labels_alone=labels.choose(promise.harm, promise.confidence),
        )
    return made


def items_needed(harm: float, confidence: float) -> int:
    """The fewest answers that can prove the promise, if none is made worse: (1 - harm)^n <= 1 - confidence."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-harm))
