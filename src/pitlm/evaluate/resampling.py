"""Drawing items with replacement, for statistics that are computed from weights: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pitlm.evaluate.statistics import Floats, Interval


def item_weights(items: int, *, resamples: int, seed: int) -> Floats:
    """How often each item is drawn in each resample, shape (resamples, items); every row sums to ``items``."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(items, np.full(items, 1 / items), size=resamples).astype(np.float64)


def percentile_interval(estimate: float, draws: Sequence[float] | Floats, confidence: float) -> Interval:
    """The percentile interval of ``draws`` around ``estimate``.

    Draws that are NaN, where a resample leaves a statistic undefined, are left out; with none left the bounds are NaN.
    """
    finite = np.asarray(draws, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return Interval(estimate, math.nan, math.nan, confidence)
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high), confidence)
