"""Plots as inline SVG: one small panel each, so that a page can set them side by side or stack them.

The SVG carries no namespace, date or random identifier: the same data gives the same text. Colours
are CSS variables of the page (``--fg``, ``--grid``, ``--s0`` ...), so that one picture serves the light
and the dark scheme; series also differ in line style and marker, for readers who see few colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pitlm.report.shape import Curve, RoundQuality, SystemLine

# Okabe and Ito's palette, in the order that keeps neighbours apart; the page may lighten them.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_FOREGROUND, _GRID, _CARD = "#101112", "#d0d1d2", "#f0f1f2"
_VARIABLES = {_FOREGROUND: "var(--fg)", _GRID: "var(--grid)", _CARD: "var(--card)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(SERIES)
}
_LINES = ("solid", "dashed", "dashdot", "dotted")
_MARKERS = "osD^vP"
# Inches, 72 SVG units each: a panel is read at 1 to 1.6 times its size, from a phone to half a desktop page.
_PANEL = (3.7, 2.6)
_WIDE = 4.9
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _FOREGROUND,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": _FOREGROUND,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _FOREGROUND,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": _FOREGROUND,
    "svg.fonttype": "none",
    # Labels hold names from data and settings: a dollar sign must not start a formula.
    "text.parse_math": False,
    "text.color": _FOREGROUND,
    "xtick.color": _FOREGROUND,
    "ytick.color": _FOREGROUND,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: ``svg`` is markup that may be put in a page as it is."""

    title: str
    svg: str


def curve_panels(curve: Curve) -> list[Panel]:
    """Reward, probe and KL of one RL stage against its steps; a series without a value gives no panel."""
    wanted = (
        ("reward", curve.reward, 0),
        (curve.probe_name, curve.probe, 2),
        ("KL to the SFT improver (nats per sequence)", curve.kl, 1),
    )
    panels = []
    for title, values, colour in wanted:
        points = [(s, v) for s, v in zip(curve.step, values, strict=bool(values)) if v is not None and isfinite(v)]
        if points:
            panels.append(_panel(f"{curve.stage}: {title}", title, _draw_line(points, colour)))
    return panels


def round_panel(quality: RoundQuality) -> Panel | None:
    """Mean quality by improvement round, with intervals; None without a finite value."""
    systems = {n: i for n, i in quality.systems.items() if any(isfinite(interval.estimate) for interval in i)}
    if not systems:
        return None

    def draw(axes: Axes) -> None:
        for number, (name, intervals) in enumerate(systems.items()):
            # A little apart, or the intervals of equal systems would hide one another.
            shift = 0.06 * (number - (len(systems) - 1) / 2)
            axes.errorbar(
                [round_ + shift for round_ in range(len(intervals))],
                [interval.estimate for interval in intervals],
                yerr=_arms([(i.estimate, i.low, i.high) for i in intervals]),
                label=_label(name),
                color=SERIES[number % len(SERIES)],
                linestyle=_LINES[number % len(_LINES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                capsize=3,
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round (0 = original)")
        _legend(axes)

    title = f"{quality.name} by improvement round"
    return _panel(title, title, draw, size=(_WIDE, 2.7 + 0.15 * len(systems)))


def gap_panel(gaps: Mapping[str, Sequence[float]]) -> Panel | None:
    """Overlaid histograms of the calibrated gap to the original, with a line at 0; None without a finite value."""
    groups = {name: np.array([v for v in values if isfinite(v)]) for name, values in gaps.items()}
    groups = {name: values for name, values in groups.items() if len(values)}
    if not groups:
        return None
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=30).tolist()

    def draw(axes: Axes) -> None:
        for number, (name, values) in enumerate(groups.items()):
            colour, line = SERIES[number % len(SERIES)], _LINES[number % len(_LINES)]
            weights = np.full(len(values), 1 / len(values))
            label = f"{_label(name)}: {np.mean(values > 0):.0%} above 0"
            axes.hist(values, edges, weights=weights, color=colour, alpha=0.18)
            axes.hist(values, edges, weights=weights, histtype="step", edgecolor=colour, linestyle=line, label=label)
        axes.axvline(0, color=_FOREGROUND, linewidth=1)
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set_xlabel("gap to the original (0 = no better)")
        axes.set_ylabel("share of answers")
        _legend(axes)

    title = "Distribution of the gap"
    return _panel(title, title, draw, size=(_WIDE, 2.7 + 0.15 * len(groups)))


def rate_panels(systems: Sequence[SystemLine]) -> list[Panel]:
    """Win rate and Delta of each judged system as dots with intervals, best viewed side by side."""
    panels = []
    for title, attribute in (
        ("win rate against the original", "win_rate"),
        ("Δ = win rate \N{MINUS SIGN} lose rate", "delta"),
    ):
        lines = [(line.label, getattr(line, attribute)) for line in systems]
        points = [(label, (i.estimate, i.low, i.high)) for label, i in lines if i is not None and isfinite(i.estimate)]
        if points:
            size = (_WIDE, 0.5 + 0.42 * len(points))
            panels.append(_panel(title, title, _draw_dots(points, zero=attribute == "delta"), size=size))
    return panels


def _draw_line(points: Sequence[tuple[float, float]], colour: int) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        steps, values = zip(*points, strict=True)
        # Sparse probes need their points shown; dense curves would drown in them.
        marker = _MARKERS[colour] if len(points) <= 30 else ""
        axes.plot(steps, values, color=SERIES[colour], marker=marker, markersize=3, linewidth=1.3)
        axes.set_xlabel("RL step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return draw


def _draw_dots(points: Sequence[tuple[str, tuple[float, float, float]]], *, zero: bool) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        bounds = [bound for _, bound in points]
        axes.errorbar(
            [estimate for estimate, _, _ in bounds],
            range(len(points)),
            xerr=_arms(bounds),
            fmt="o",
            color=SERIES[0],
            markersize=5,
            capsize=3,
            elinewidth=1.5,
        )
        # Names above their dots rather than beside the axis leave the whole width to the data.
        patch = {"facecolor": _CARD, "edgecolor": "none", "pad": 1.0}
        for row, (label, _) in enumerate(points):
            axes.text(0, row - 0.35, _label(label), transform=axes.get_yaxis_transform(), va="center", bbox=patch)
        axes.set_yticks([])
        axes.set_ylim(len(points) - 0.6, -0.6)
        axes.spines.left.set_visible(False)
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        if zero:
            axes.axvline(0, color=_FOREGROUND, linewidth=1)
        else:
            axes.set_xlim(0, 1)

    return draw


def _arms(bounds: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """(estimate, low, high) per point as matplotlib's two lists of distances, never negative."""
    return [[max(0.0, e - low) for e, low, _ in bounds], [max(0.0, high - e) for e, _, high in bounds]]


def _percent(value: float, _position: int) -> str:
    return f"{100 * value:.0f}%".replace("-", "\N{MINUS SIGN}")


def _label(text: str) -> str:
    """A name short enough for a plot, without characters that XML forbids or a leading legend-hiding underscore."""
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", " ", text).strip().lstrip("_")
    return clean if len(clean) <= 40 else f"{clean[:39]}…"


def _legend(axes: Axes) -> None:
    # Above the axes it can never hide data, whatever the data.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, ncols=1)


def _panel(identity: str, title: str, draw: Callable[[Axes], None], size: tuple[float, float] = _PANEL) -> Panel:
    """Draw one panel; ``identity`` tells its identifiers from those of the page's other panels."""
    prefix = f"p{sha256(identity.encode('utf-8', 'replace')).hexdigest()[:8]}"
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": prefix}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Panel(title, _inline(buffer.getvalue(), prefix, identity))


def _inline(svg: str, prefix: str, description: str) -> str:
    """Matplotlib's SVG document as an element for an HTML page, its identifiers prefixed."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        # Inline, its style element would style the whole page: the page's own style sheet says the same.
        for child in [c for c in parent if _local(c.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = dict(_attributes(element.attrib, prefix))
    # The page decides the size; the view box keeps the shape.
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", _label(description))
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _attributes(attributes: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in attributes.items():
        name = _local(name)
        if name == "id":
            value = f"{prefix}-{value}"
        elif name == "href":
            value = value.replace("#", f"#{prefix}-", 1)
        else:
            value = value.replace("url(#", f"url(#{prefix}-")
            for colour, variable in _VARIABLES.items() if name == "style" else ():
                value = value.replace(colour, variable)
        yield name, value
