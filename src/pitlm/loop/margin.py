"""How large the margin has to be, so that no more answers are made worse than was promised. Ours.

"Always accept" is run once; any margin is then replayed on it, because a loop that stops at the first proposal that it
does not accept has seen nothing else until then. The margin is chosen by Learn then Test (Angelopoulos, Bates, Candes,
Jordan, Lei 2021, arXiv:2110.01052) with fixed-sequence testing: margins are tested from the largest down, each with the
exact binomial test of "the share made worse is above the promise", and the last one before the first that is not
refuted is taken. With probability ``confidence`` over the calibration's items, the share of new answers that the loop
makes worse is then within the promise.

It asks for items that are exchangeable with those to come, and for nothing else: in particular not that a larger margin
brings less harm, as conformal risk control (arXiv:2208.02814) would, and which several rounds do not grant: a loop that
stops earlier may stop at a worse answer. The promise is about the verdicts of the judge that was asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt, Trace
from pitlm.loop.chains import incumbents
from pitlm.loop.loop import GapScorer

MARGINS = tuple(step / 16 for step in range(256, -1, -1))
"""The margins that are tested, in log odds, the safest first. Fixed beforehand, as the guarantee asks."""

TIE = 1e-6
"""Qualities closer than this are equal."""

Floats = NDArray[np.float64]


def rescored(traces: Sequence[Trace], gap: GapScorer) -> list[Trace]:
    """The same "always accept" with another scorer's gaps; with one proposal a round it would have done the same."""
    steps = [
        Improvement(trace.prompt, reference, step.proposal)
        for trace in traces
        for reference, step in zip(incumbents(trace)[:-1], trace.rounds, strict=True)
    ]
    gaps = (float(value) for value in gap.gaps(steps))
    return [replace(trace, rounds=tuple(replace(step, gap=next(gaps)) for step in trace.rounds)) for trace in traces]


@dataclass(frozen=True, slots=True)
class MarginOutcome:
    """What a loop with one margin did to the calibration's items; tokens and gain are means per item.

    Attributes:
        worse: items whose final answer the judge finds worse than the original.
        gain: quality of the final answer less that of the original, in the judge's unit.
    """

    margin: float
    items: int
    worse: int
    gain: float
    tokens: float

    @property
    def harm(self) -> float:
        return self.worse / self.items

    def refutes(self, harm: float, confidence: float) -> bool:
        """Whether "the true share made worse is above ``harm``" is refuted (exact one-sided binomial test)."""
        return bool(binomtest(self.worse, self.items, harm, alternative="less").pvalue <= 1 - confidence)


@dataclass(frozen=True)
class Chains:
    """What "always accept" made of N items in R rounds; replays the loop with any margin.

    Attributes:
        gap_NR: of each round's best proposal to its incumbent.
        changed_NR: whether that proposal differs from the incumbent.
        token_NR: generated in each round.
        quality_NQ: of the original and of the incumbent after each round, by the judge; Q = R + 1.
    """

    gap_NR: Floats
    changed_NR: NDArray[np.bool_]
    token_NR: Floats
    quality_NQ: Floats

    @classmethod
    def of(cls, traces: Sequence[Trace], score: Callable[[Sequence[Prompt], Sequence[str]], list[float]]) -> Chains:
        """From the traces of :func:`pitlm.loop.chains.always_accept`, judged by ``score``.

        Raises:
            InputError: no traces.
        """
        if not traces:
            raise InputError("calibration: found no answers, expected some")
        asked = [(trace.prompt, text) for trace in traces for text in incumbents(trace)]
        quality = score([prompt for prompt, _ in asked], [text for _, text in asked])
        return cls(
            np.array([trace.gaps for trace in traces]),
            np.array([[r.accepted for r in trace.rounds] for trace in traces]),
            np.array([[r.tokens for r in trace.rounds] for trace in traces], dtype=np.float64),
            np.array(quality, dtype=np.float64).reshape(len(traces), -1),
        )

    def at(self, margin: float) -> MarginOutcome:
        """What the loop with this margin does."""
        rounds = self.gap_NR.shape[1]
        accepted = (self.changed_NR & (self.gap_NR > margin)).cumprod(1).sum(1)
        played = np.minimum(accepted + 1, rounds)
        # An infinite margin proposes nothing.
        spent = np.take_along_axis(self.token_NR.cumsum(1), played[:, None] - 1, 1).mean() if margin < math.inf else 0.0
        return self._outcome(margin, accepted, float(spent))

    def always(self) -> MarginOutcome:
        """What "always accept" itself did."""
        items, rounds = self.gap_NR.shape
        return self._outcome(-math.inf, np.full(items, rounds), float(self.token_NR.sum(1).mean()))

    def _outcome(self, margin: float, ended_N: NDArray[np.int64], tokens: float) -> MarginOutcome:
        change = np.take_along_axis(self.quality_NQ, ended_N[:, None], 1)[:, 0] - self.quality_NQ[:, 0]
        return MarginOutcome(margin, len(change), int((change < -TIE).sum()), float(change.mean()), tokens)

    def choose(self, harm: float, confidence: float) -> MarginOutcome:
        """The outcome of the smallest margin that is tested to keep the promise; of an infinite one if none is.

        Args:
            harm: the share of answers that may be made worse, in (0, 1).
            confidence: that the promise holds, in (0, 1).
        """
        chosen = self.at(math.inf)  # it changes nothing, so it needs no test
        for margin in MARGINS:
            outcome = self.at(margin)
            if not outcome.refutes(harm, confidence):
                break
            chosen = outcome
        return chosen


def first_growth(traces: Sequence[Trace]) -> list[float]:
    """Length of each first proposal in units of its original's (characters); an empty original counts as one."""
    return [len(trace.rounds[0].proposal) / max(1, len(trace.original)) for trace in traces if trace.rounds]


def items_needed(harm: float, confidence: float) -> int:
    """How many answers, none of them made worse, it takes to promise anything: (1 - harm)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - harm))
