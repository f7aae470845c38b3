"""Whether quality still held at the end of an RL training."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pitlm.evaluate.statistics import mean_interval


def quality_trend(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the judge's quality still held at the end, while RL maximised the reward. Not in the paper.

    Args:
        rows: two or more measurements of ``probe.jsonl``, each with one quality per held-out item, in the same order.

    Returns:
        Means of the first, the late and the last measurement, and the change from late to last, paired by item. The
        late measurement is the first from three quarters of the steps on, or else the last but one. If the interval of
        the change lies below zero, this is the mark of reward hacking.
    """
    first, *middle, last = rows
    late = next((row for row in middle if row["step"] >= 0.75 * last["step"]), rows[-2])
    change = np.array(last["quality"]) - np.array(late["quality"])
    return {
        **{name: float(np.mean(row["quality"])) for name, row in (("first", first), ("late", late), ("last", last))},
        "late_step": late["step"],
        "last_step": last["step"],
        "change": asdict(mean_interval(change.tolist())),
    }
