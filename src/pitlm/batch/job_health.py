"""Checks of a finished job: did the loop change anything, or only lengthen answers, or meet unusual answers?

The paper has no such checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

from pitlm.core.nouns import Trace
from pitlm.io.templates import template
from pitlm.loop.calibration import Calibration
from pitlm.loop.chains import first_growth

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NO_OP, PADDING = 0.95, 1.5
"""Warn if this share of the answers came back unchanged; if changed answers grew to this many times their length."""

DRIFT, DRIFT_P = 0.1, 0.001
"""Warn if two distributions have at least this distance (Kolmogorov-Smirnov) and at most this p-value."""

ENOUGH = 20
"""Give no warning about fewer answers than this."""


@dataclass(frozen=True, slots=True)
class RunHealth:
    """Figures of one run of the loop over many answers.

    Attributes:
        copy_rate: share of the answers that came back unchanged.
        growth: length of all final answers divided by the length of all originals, both in characters.
        changed_growth: the same over the changed answers; NaN if there are none.
        gaps: quantiles of the first proposals' gaps (:data:`QUANTILES`); NaN if nothing was proposed.
        drift: distance of the first proposals' gaps and lengths from those of the calibration (Kolmogorov-Smirnov, 0
            to 1); empty without a calibration.
        warnings: sentences for a person to read.
    """

    answers: int
    copy_rate: float
    growth: float
    changed_growth: float
    gaps: tuple[float, ...]
    drift: dict[str, float]
    warnings: tuple[str, ...]

    def sentences(self) -> list[str]:
        """The figures, and then the warnings, for a person to read."""
        gaps = zip(QUANTILES, self.gaps, strict=True) if np.isfinite(self.gaps).all() else ()
        return template("pitlm.batch", "health.j2").render(found=self, gaps=list(gaps)).splitlines()


def health(traces: Sequence[Trace], calibration: Calibration | None = None) -> RunHealth:
    """Compute the figures of a run; ``calibration`` is that of the scorer that decided, if it has one."""
    changed = [trace for trace in traces if trace.final != trace.original]
    copy_rate = (len(traces) - len(changed)) / len(traces) if traces else float("nan")
    growth, changed_growth = _growth(traces), _growth(changed)
    gaps = [trace.gaps[0] for trace in traces if trace.rounds and np.isfinite(trace.gaps[0])]
    quantiles = tuple(map(float, np.quantile(gaps, QUANTILES))) if gaps else (float("nan"),) * len(QUANTILES)
    tests = {}
    if calibration is not None and gaps:
        tests = {"gap": ks_2samp(gaps, calibration.gaps), "length": ks_2samp(first_growth(traces), calibration.growth)}
    warnings = []
    if copy_rate >= NO_OP and len(traces) >= ENOUGH:
        warnings.append(f"This looks like a no-op: {copy_rate:.0%} of the answers came back unchanged.")
    if changed_growth >= PADDING and len(traces) >= ENOUGH:
        warnings.append(f"This looks like padding: changed answers are {changed_growth:.1f} times as long as before.")
    for name, test in tests.items():
        if test.statistic > DRIFT and test.pvalue < DRIFT_P and len(gaps) >= ENOUGH:
            warnings.append(
                f"The {name}s of the first proposals are not those of the calibration (distance {test.statistic:.2f}): "
                "the promise about harm may not hold for such answers. Calibrate on answers like these."
            )
    drift = {name: float(test.statistic) for name, test in tests.items()}
    return RunHealth(len(traces), copy_rate, growth, changed_growth, quantiles, drift, tuple(warnings))


def _growth(traces: Sequence[Trace]) -> float:
    before = sum(len(trace.original) for trace in traces)
    return sum(len(trace.final) for trace in traces) / before if before else float("nan")
