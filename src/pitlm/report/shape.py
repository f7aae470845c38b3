"""The result of a run as one value, which is rendered to the terminal, to HTML and to a model card.

Units, unless a field says otherwise: rates, shares and accuracies are fractions in [0, 1] and Delta
in [-1, 1]; lengths are tokens; gaps are calibrated (0 = as good as the original) in raw-score units.
NaN and None both mean "not measured" and are shown as a dash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml

from pitlm.core.nouns import Trace
from pitlm.core.verdicts import VerdictRow
from pitlm.evaluate.statistics import Interval
from pitlm.evaluate.summary import Summary, SystemFigures

Points = Sequence[tuple[float, float]]
"""The points of a curve: (step, value). NaN marks a gap."""


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One item before and after. ``gap`` is final against original; ``row`` is the headline judge's verdict on it."""

    trace: Trace
    gap: float | None = None
    row: VerdictRow | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All that one run has to show. Every part but the title may be missing.

    Attributes:
        judges: how often each judge agrees with held-out labels. The first is the judge of the headline.
        compared: pairs of systems whose Deltas are set against one another.
        curves: for each stage of reinforcement learning its figures by name: the reward, a quality that RL does not
            maximise (the true utility of held-out answers, or a judge's score of them), and the KL to the SFT improver,
            a sum over a sequence in nats.
        quality_by_round: by judge and system, the mean quality after round 0 (the original), 1, 2, ...
        gaps: by system, the gap of each final answer to the original answer.
        health: figures about the gap model by the keys of ``HEALTH``: shares with intervals, and plain numbers.
        trends: a sentence about each RL stage.
        notes: how to read the results, one paragraph each; shown last.
    """

    title: str
    settings: Mapping[str, str] = field(default_factory=dict)
    headline: Sequence[str] = ()
    summary: Summary | None = None
    judges: Mapping[str, Interval] = field(default_factory=dict)
    compared: Sequence[tuple[str, str]] = ()
    curves: Mapping[str, Mapping[str, Points]] = field(default_factory=dict)
    quality_by_round: Mapping[str, Mapping[str, Sequence[Interval]]] = field(default_factory=dict)
    gaps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    health: Mapping[str, Interval | float] = field(default_factory=dict)
    examples: Sequence[BeforeAfter] = ()
    trends: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def judge(self) -> str:
        """The judge of the headline."""
        return next(iter(self.judges), "")

    @property
    def systems(self) -> list[SystemFigures]:
        """Each system against the original answers, by the judge of the headline."""
        return self.summary.by(self.judge) if self.summary else []


HEALTH: Mapping[str, tuple[str, str]] = yaml.safe_load(files("pitlm.report").joinpath("health.yaml").read_text("utf-8"))
"""Figures about R_PIT by their keys, in the order in which a reader should meet them: the name, the explanation."""


def health_figures(health: Mapping[str, Any]) -> dict[str, Interval | float]:
    """The figures of :func:`pitlm.evaluate.gap_health.gap_health` by the keys of ``HEALTH``, in the same order.

    Raises:
        KeyError: a figure is missing.
    """
    found = {**health, **health["order"]}
    return {key: share_interval(found[key]) if isinstance(found[key], Mapping) else found[key] for key in HEALTH}


def share_interval(share: Mapping[str, float]) -> Interval:
    """The interval of a share, from its form in a stage's result."""
    return Interval(share["estimate"], share["low"], share["high"])
