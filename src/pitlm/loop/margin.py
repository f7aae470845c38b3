"""How large the margin must be so that no more answers are made worse than was promised. Ours.

"Always accept" is run once. Every margin is then replayed on its traces: a loop that stops at the first proposal that
it does not accept has seen the same rounds until then. The margin is chosen by Learn then Test (Angelopoulos, Bates,
Candes, Jordan, Lei 2021, arXiv:2110.01052) with fixed-sequence testing. Margins are tested from the largest down, each
with the exact binomial test of "the share made worse is above the promise". The last margin before the first test that
fails is taken. With probability ``confidence`` over the calibration's items, the loop then makes no larger share of new
answers worse than promised.

The only assumption is that the items are exchangeable with those to come. In particular, a larger margin need not bring
less harm, as conformal risk control (arXiv:2208.02814) would ask: with several rounds it may bring more, because a loop
that stops earlier may stop at a worse answer. The promise is about the verdicts of the judge that was asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Preference, Prompt, Trace
from pitlm.core.recipe import LoopSection
from pitlm.loop.calibration import Calibration, Promise
from pitlm.loop.chains import first_growth, incumbents
from pitlm.loop.loop import GapScorer

MARGINS = tuple(step / 16 for step in range(256, -1, -1))
"""The margins that are tested, in log odds, the safest first. They are fixed beforehand, as the guarantee asks."""

SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""The margins of the printed curve."""

TIE = 1e-6
"""Qualities closer than this are equal."""

Floats = NDArray[np.float64]
Score = Callable[[Sequence[Prompt], Sequence[str]], list[float]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a loop with one margin did to the calibration's items.

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
        """The outcome of the loop with this margin."""
        rounds = self.gap_NR.shape[1]
        accepted = (self.changed_NR & (self.gap_NR > margin)).cumprod(1).sum(1)
        played = np.minimum(accepted + 1, rounds)
        # With an infinite margin the loop asks for no proposal.
        spent = np.take_along_axis(self.token_NR.cumsum(1), played[:, None] - 1, 1).mean() if margin < math.inf else 0.0
        return self._outcome(margin, accepted, float(spent))

    def always(self) -> Outcome:
        """The outcome of "always accept" itself."""
        items, rounds = self.gap_NR.shape
        return self._outcome(-math.inf, np.full(items, rounds), float(self.token_NR.sum(1).mean()))

    def choose(self, harm: float, confidence: float) -> Outcome:
        """The outcome of the smallest margin that passes every test down to it; of an infinite margin if none does.

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

    def _outcome(self, margin: float, ended_N: NDArray[np.int64], tokens: float) -> Outcome:
        change = np.take_along_axis(self.quality_NQ, ended_N[:, None], 1)[:, 0] - self.quality_NQ[:, 0]
        return Outcome(margin, len(change), int((change < -TIE).sum()), float(change.mean()), tokens)


@dataclass(frozen=True)
class Calibrated:
    """A calibration and its evidence.

    Attributes:
        curve: outcomes of other margins on the items that the margin was chosen on.
        chosen, always: outcomes of the margin and of "always accept" there.
        held_out, held_out_always: the same on items that had no part in the choice.
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
        made, alone = self.calibration, self.labels_alone.margin
        needed = items_needed(made.harm, made.confidence)
        if math.isfinite(made.margin):
            first = (
                f"* the margin: at most {made.harm:.1%} of such answers are made worse, with confidence "
                f"{made.confidence:.0%}."
            )
        else:
            few = f"it takes {needed} answers to promise this"
            why = few if made.items < needed else "every margin makes too many worse"
            first = f"No margin keeps the promise ({why}): the loop will change nothing. Ask for a larger --harm."
        asked = f"the labels by themselves would ask for {alone:.4g}"
        return [
            first,
            f"On {self.labels.items} held-out pairs, one response proposed in place of the other, the labeller would "
            f"find {self.labels.harm:.1%} made worse; "
            f"{asked if math.isfinite(alone) else 'no margin would do by them'}.",
        ]


def calibrate(
    name: str,
    gap: GapScorer,
    *,
    choosing: Sequence[Trace],
    held_out: Sequence[Trace],
    settings: LoopSection,
    promise: Promise,
    pairs: Sequence[Preference],
    judge: str,
    score: Score,
) -> Calibrated:
    """Choose the margin of one scorer on ``choosing``; ``held_out`` and ``pairs`` only show what the margin does.

    Args:
        name: name of the scorer.
        choosing, held_out: traces of "always accept" on two sets of answers (:func:`pitlm.loop.chains.play`).
        judge, score: name of the judge, and its quality of each (x, y).

    Raises:
        InputError: no answers.
    """
    found, there, labels = Chains.of(choosing, score), Chains.of(held_out, score), Chains.of_labels(pairs, gap)
    chosen = found.choose(promise.harm, promise.confidence)
    return Calibrated(
        Calibration(
            scorer=name,
            margin=chosen.margin,
            harm=promise.harm,
            confidence=promise.confidence,
            items=chosen.items,
            judge=judge,
            settings=settings,
            gaps=tuple(round(trace.gaps[0], 4) for trace in choosing if math.isfinite(trace.gaps[0])),
            growth=tuple(round(value, 4) for value in first_growth(choosing)),
        ),
        curve=[found.at(margin) for margin in SHOWN],
        chosen=chosen,
        always=found.always(),
        held_out=there.at(chosen.margin),
        held_out_always=there.always(),
        labels=labels.at(chosen.margin),
        labels_alone=labels.choose(promise.harm, promise.confidence),
    )


def items_needed(harm: float, confidence: float) -> int:
    """How many answers, none of them made worse, it takes to promise anything: (1 - harm)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - harm))
