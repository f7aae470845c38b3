"""What a report shows, as frozen values. Every part but the title may be missing.

Units, unless a field says otherwise: rates, shares and accuracies are fractions in [0, 1] and Delta
in [-1, 1]; lengths are tokens; gaps are calibrated (0 = as good as the original) in raw-score units.
NaN and None both mean "not measured" and are shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pitlm.core.nouns import Trace
from pitlm.core.verdicts import Verdict
from pitlm.evaluate.statistics import Interval, Tally

Unit = Literal["share", "number"]


@dataclass(frozen=True, slots=True)
class SystemLine:
    """One system, over all its items, against the original answers as one judge sees them.

    ``tally``, ``delta`` and ``win_rate`` are None for the original itself. ``length_change_share``
    is the mean relative change against the original, 0.1 for 10% longer.
    """

    name: str
    items: int
    tally: Tally | None = None
    delta: Interval | None = None
    win_rate: Interval | None = None
    quality: Interval | None = None
    copy_rate: float | None = None
    length_change_tokens: float | None = None
    length_change_share: float | None = None
    generated_tokens: float | None = None
    gain_per_100_tokens: Interval | None = None
    judge: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.judge})" if self.judge else self.name


@dataclass(frozen=True, slots=True)
class DifferenceLine:
    """Delta of ``first`` minus Delta of ``second``, over the same items."""

    first: str
    second: str
    interval: Interval
    judge: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """One stage of reinforcement learning. Sequences run parallel to ``step``; None marks a gap.

    ``kl`` is the sum over a sequence, in nats, to the SFT improver; ``probe`` is a held-out figure
    that the reward cannot see (the pocket world's true utility, a second judge), named by
    ``probe_name``. An empty sequence leaves its panel out.
    """

    stage: str
    step: Sequence[float]
    reward: Sequence[float | None] = ()
    kl: Sequence[float | None] = ()
    probe: Sequence[float | None] = ()
    probe_name: str = "true utility"


@dataclass(frozen=True, slots=True)
class RoundQuality:
    """Mean quality after round 0 (the original), 1, 2, ... for each system."""

    name: str
    systems: Mapping[str, Sequence[Interval]]


@dataclass(frozen=True, slots=True)
class HealthLine:
    """One figure about the gap model and how to read it."""

    name: str
    value: float
    interval: Interval | None = None
    explanation: str = ""
    unit: Unit = "share"


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One item before and after. ``gap`` is final against original; ``scores`` are (final, original)."""

    trace: Trace
    gap: float | None = None
    verdict: Verdict | None = None
    scores: tuple[float, float] | None = None
    system: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that one report shows; ``notes`` are shown last, one paragraph each."""

    title: str
    settings: Mapping[str, str] = field(default_factory=dict)
    headline: Sequence[str] = ()
    systems: Sequence[SystemLine] = ()
    differences: Sequence[DifferenceLine] = ()
    curves: Sequence[Curve] = ()
    quality_by_round: RoundQuality | None = None
    gaps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    health: Sequence[HealthLine] = ()
    examples: Sequence[BeforeAfter] = ()
    notes: Sequence[str] = ()
    quality_name: str = "quality"


_ORDER = "Share of held-out triples scored in this order. Chance is 50%; near 100% is good. "

# key -> (name, unit, explanation), in the order in which a reader should meet them. The relations' keys are those of
# `core.equations.RELATIONS`, the others those of `evaluate.health`.
_HEALTH: Mapping[str, tuple[str, Unit, str]] = MappingProxyType(
    {
        "wl>ww": (
            "Order: improving beats repeating the chosen answer (wl > ww)",
            "share",
            _ORDER + "Low: a real improvement looks no better than no change.",
        ),
        "wl>ll": (
            "Order: improving beats repeating the rejected answer (wl > ll)",
            "share",
            _ORDER + "Low: a real improvement looks no better than no change.",
        ),
        "wl>lw": (
            "Order: improving beats worsening (wl > lw)",
            "share",
            _ORDER + "The widest relation, so it should be the highest of the five.",
        ),
        "ww>lw": (
            "Order: repeating the chosen answer beats worsening it (ww > lw)",
            "share",
            _ORDER + "Low: the loop may accept a worse answer.",
        ),
        "ll>lw": (
            "Order: repeating the rejected answer beats worsening (ll > lw)",
            "share",
            _ORDER + "Low: the loop may accept a worse answer.",
        ),
        "held_out_pairs": (
            "Held-out pairs: gap model R_PIT",
            "share",
            "How often the preferred answer is ranked first. Chance is 50%; noise in the labels keeps it under 100%.",
        ),
        "held_out_pairs_reward": (
            "Held-out pairs: ordinary reward model R_P",
            "share",
            "The same pairs, by subtracting two ordinary rewards. R_PIT should not be below this.",
        ),
        "held_out_pairs_longer": (
            "Held-out pairs: always prefer the longer",
            "share",
            "What length alone would get right. A gap model near this line may have learnt nothing but length.",
        ),
        "fresh_pairs": (
            "Fresh pairs of the policy's own answers",
            "share",
            "Accuracy on the answers that RL and the loop meet. Chance is 50%; under 60%, expect reward hacking.",
        ),
        "antisymmetry": (
            "Antisymmetry: correlation of gap(a, b) with gap(b, a)",
            "number",
            "-1 is ideal: if a beats b, then b loses to a by as much. Near 0, the gap depends on who is the reference.",
        ),
        "equal_spread": (
            "Spread of equal pairs (standard deviation)",
            "number",
            "Raw score of an answer against itself. Calibration subtracts it; small beside the spread of gaps is good.",
        ),
        "gap_spread": (
            "Spread of the gaps of held-out pairs (standard deviation)",
            "number",
            "The scale of the gap: what a margin, or the spread of equal pairs, has to be measured against.",
        ),
        "length_correlation": (
            "Correlation of the gap with the length difference",
            "number",
            "0: length does not matter. Near 1 or -1: the model rewards longer or shorter answers as such.",
        ),
    }
)

HEALTH_KEYS: tuple[str, ...] = tuple(_HEALTH)


def health_line(key: str, value: float, interval: Interval | None = None) -> HealthLine:
    """The line for a known figure, with its name, unit and explanation (relations: paper, Eq. 1 and 2; others ours).

    Raises:
        KeyError: ``key`` is not one of ``HEALTH_KEYS``.
    """
    name, unit, explanation = _HEALTH[key]
    return HealthLine(name, value, interval, explanation, unit)
