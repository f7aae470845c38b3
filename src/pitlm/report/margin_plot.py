"""The picture of a calibration: what a smaller margin would gain, and what it would harm."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pitlm.evaluate.margins import Calibrated
from pitlm.io.atomic import write_text


def draw_margins(made: Mapping[str, Calibrated], path: Path) -> None:
    """Write an SVG: share of the gain of "always accept" against the share made worse, one line a scorer.

    Raises:
        OSError: the folder cannot be written to.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "margins"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        for name, found in made.items():
            scale = found.always.gain or 1.0
            curve = sorted({*found.curve, found.chosen}, key=lambda outcome: outcome.margin)
            points = [(100 * one.harm, 100 * one.gain / scale) for one in curve]
            [line] = axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
            at = (100 * found.chosen.harm, 100 * found.chosen.gain / scale)
            axes.plot(*at, marker="*", markersize=14, color=line.get_color(), linestyle="none")
        first = next(iter(made.values()))
        axes.plot(100 * first.always.harm, 100, marker="s", color="gray", linestyle="none", label="always accept")
        promise = 100 * first.calibration.harm
        axes.axvline(promise, color="gray", linewidth=1, linestyle="dashed", label=f"promise: {promise:g}%")
        axes.set_xlabel(f"answers made worse (%), judge: {first.calibration.judge}")
        axes.set_ylabel('gain (% of that of "always accept")')
        axes.grid(alpha=0.3)
        axes.legend()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    write_text(path, text.getvalue())
