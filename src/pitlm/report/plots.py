"""Plots of a run as inline SVG, one small panel each, and the plot of a calibration as a file.

A page can set the panels side by side or stack them. A panel carries no namespace, date or random identifier: the same
data gives the same text. Its colours are CSS variables of the page (``--fg``, ``--grid``, ``--s0`` ...), so that one
picture serves the light and the dark scheme. Series also differ in line style and marker, for readers who see few
colours.
"""

import io
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pitlm.evaluate.statistics import Interval
from pitlm.evaluate.summary import SystemFigures
from pitlm.io.atomic import atomic_writer
from pitlm.loop.margin import Calibrated
from pitlm.report.shape import Points

# Okabe and Ito's palette, in the order that keeps neighbours apart; the page may lighten them.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# matplotlib's own black, grid and white, and the series, as the page's variables.
_VARIABLES = {"#000000": "var(--fg)", "#b0b0b0": "var(--grid)", "#ffffff": "var(--card)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(SERIES)
}
_LINES = ("solid", "dashed", "dashdot", "dotted")
_MARKERS = "osD^vP"
_STYLE = str(Path(__file__).with_name("panels.mplstyle"))


@matplotlib.rc_context(fname=_STYLE)
def curve_panels(stage: str, figures: Mapping[str, Points]) -> list[Markup]:
    """Each figure of one RL stage against its steps; a figure without a finite value gives no panel."""
    panels = []
    for number, (title, given) in enumerate(figures.items()):
        points = [(step, value) for step, value in given if isfinite(value)]
        if points:
            figure, axes = _figure(3.7, 2.6)
            # Sparse points need markers; a dense curve would drown in them.
            marker = _MARKERS[number] if len(points) <= 30 else ""
            axes.plot(*zip(*points, strict=True), color=SERIES[number], marker=marker, markersize=3, linewidth=1.3)
            axes.set_xlabel("RL step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            panels.append(_panel(figure, title, f"{stage}: {title}"))
    return panels


@matplotlib.rc_context(fname=_STYLE)
def round_panel(judge: str, systems: Mapping[str, Sequence[Interval]]) -> Markup | None:
    """Mean quality by improvement round, with intervals; None without a finite value."""
    shown = {n: i for n, i in systems.items() if any(isfinite(interval.estimate) for interval in i)}
    if not shown:
        return None
    figure, axes = _figure(4.9, 2.7 + 0.15 * len(shown))
    for number, (name, intervals) in enumerate(shown.items()):
        # The systems are drawn a little apart, or the intervals of equal systems would hide one another.
        rounds = [round_ + 0.06 * (number - (len(shown) - 1) / 2) for round_ in range(len(intervals))]
        means = [interval.estimate for interval in intervals]
        marker = _MARKERS[number % len(_MARKERS)]
        axes.errorbar(rounds, means, _arms(intervals), label=_label(name), marker=marker, markersize=4, **_line(number))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round (0 = original)")
    return _panel(figure, f"{judge} by improvement round")


@matplotlib.rc_context(fname=_STYLE)
def gap_panel(gaps: Mapping[str, Sequence[float]]) -> Markup | None:
    """Overlaid histograms of the calibrated gap to the original, with a line at 0; None without a finite value."""
    finite = {name: np.array([v for v in values if isfinite(v)]) for name, values in gaps.items()}
    groups = {name: values for name, values in finite.items() if len(values)}
    if not groups:
        return None
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=30).tolist()
    figure, axes = _figure(4.9, 2.7 + 0.15 * len(groups))
    for number, (name, values) in enumerate(groups.items()):
        line = _line(number)
        weights = np.full(len(values), 1 / len(values))
        label = f"{_label(name)}: {np.mean(values > 0):.0%} above 0"
        axes.hist(values, edges, weights=weights, color=line["color"], alpha=0.18)
        axes.hist(values, edges, weights=weights, histtype="step", label=label, **line)
    axes.axvline(0, color="black", linewidth=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("gap to the original (0 = no better)")
    axes.set_ylabel("share of answers")
    return _panel(figure, "Distribution of the gap")


@matplotlib.rc_context(fname=_STYLE)
def rate_panels(systems: Sequence[SystemFigures]) -> list[Markup]:
    """Win rate and Delta of each judged system as dots with intervals, best viewed side by side."""
    judged = [line for line in systems if isfinite(line.delta.estimate)]
    if not judged:
        return []
    names = [_label(line.system) for line in judged]
    win_rate, axes = _dots(names, [line.win_rate for line in judged])
    axes.set_xlim(0, 1)
    delta, axes = _dots(names, [line.delta for line in judged])
    axes.axvline(0, color="black", linewidth=1)
    return [
        _panel(win_rate, f"win rate against {judged[0].baseline}"),
        _panel(delta, "Δ = win rate \N{MINUS SIGN} lose rate"),
    ]


@matplotlib.rc_context(fname=_STYLE)
def length_panel(systems: Sequence[SystemFigures]) -> Markup | None:
    """The win rate of each system by its mean length, as judged and at equal lengths; None if no lengths are known."""
    known = [line for line in systems if line.lengths is not None and line.tally.judged]
    if not known:
        return None
    figure, axes = _figure(4.9, 3.4)
    lengths = [line.lengths[0] for line in known if line.lengths]
    raw = [line.alpaca.win_rate / 100 for line in known]
    equal = [line.length_controlled.win_rate.estimate if line.length_controlled else np.nan for line in known]
    axes.vlines(lengths, raw, equal, color="#b0b0b0", linewidth=1)
    axes.plot(lengths, raw, "o", color=SERIES[0], markersize=4, label="as judged")
    axes.plot(lengths, equal, "s", color=SERIES[1], markersize=4, label="at equal lengths")
    axes.set_xlabel("mean length of an answer, characters")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _panel(figure, "Win rate and length")


@matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "margins"})
def draw_margins(made: Mapping[str, Calibrated], path: Path) -> None:
    """Write an SVG: share of the gain of "always accept" against the share made worse, one line for each scorer."""
    figure, axes = _figure(6, 4)
    for name, found in made.items():
        scale = found.always.gain or 1.0
        curve = sorted({*found.curve, found.chosen}, key=lambda outcome: outcome.margin)
        points = [(100 * one.harm, 100 * one.gain / scale) for one in curve]
        [line] = axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        at = (100 * found.chosen.harm, 100 * found.chosen.gain / scale)
        axes.plot(*at, marker="*", markersize=14, color=line.get_color(), linestyle="none")
    first = next(iter(made.values()))
    harm, judge = 100 * first.calibration.harm, first.calibration.judge
    axes.plot(100 * first.always.harm, 100, marker="s", color="gray", linestyle="none", label="always accept")
    axes.axvline(harm, color="gray", linewidth=1, linestyle="dashed", label=f"promise: {harm:g}%")
    axes.set_xlabel(f"answers made worse (%), judge: {judge}")
    axes.set_ylabel('gain (% of that of "always accept")')
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_writer(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


@matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rows"})
def draw_rows(title: str, rows: Mapping[str, Interval], path: Path) -> None:
    """Write an SVG: a dot for each row, with its interval if it has one."""
    figure, axes = _figure(7, 0.6 + 0.28 * len(rows))
    axes.errorbar([row.estimate for row in rows.values()], [*rows], xerr=_arms([*rows.values()]), fmt="o")
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    with atomic_writer(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def _dots(names: Sequence[str], intervals: Sequence[Interval]) -> tuple[Figure, Axes]:
    """A dot with its interval for each name, one below the other."""
    figure, axes = _figure(4.9, 0.5 + 0.42 * len(names))
    dots = [interval.estimate for interval in intervals]
    rows, arms = range(len(names)), _arms(intervals)
    axes.errorbar(dots, rows, xerr=arms, fmt="o", color=SERIES[0], markersize=5, elinewidth=1.5)
    # Names above their dots rather than beside the axis leave the whole width to the data.
    patch = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    for row, name in enumerate(names):
        axes.text(0, row - 0.35, name, transform=axes.get_yaxis_transform(), va="center", bbox=patch)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.6, -0.6)
    axes.spines.left.set_visible(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes


def _line(number: int) -> dict[str, Any]:
    """Colour, style and marker of the line of one series."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": _LINES[number % len(_LINES)]}


def _arms(intervals: Sequence[Interval]) -> list[list[float]]:
    """The lengths of an errorbar's arms below and above the estimates, never negative."""
    below, above = [i.estimate - i.low for i in intervals], [i.high - i.estimate for i in intervals]
    return [[max(0.0, arm) for arm in arms] for arms in (below, above)]


def _label(text: str) -> str:
    """A name short enough for a plot, without characters that XML forbids or a leading legend-hiding underscore."""
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", " ", text).strip().lstrip("_")
    return clean if len(clean) <= 40 else f"{clean[:39]}…"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches: 72 SVG units each. A panel is read at 1 to 1.6 times its size, on a phone too."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _panel(figure: Figure, title: str, description: str = "") -> Markup:
    """The figure as an element of an HTML page, with its title; ``description`` is read aloud in place of the SVG."""
    description, buffer = _label(description or title), io.StringIO()
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[1]:
            # Above the axes it can never hide data, whatever the data.
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, ncols=1)
    # Each panel has a salt of its own, so no two panels of a page share an identifier.
    with matplotlib.rc_context({"svg.hashsalt": f"{description} {title}".encode("utf-8", "replace").decode()}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root.iter()):
        # Inline, the style element of the SVG would style the whole page. The page's style sheet has the same rules.
        for child in [c for c in element if c.tag.endswith(("}metadata", "}style"))]:
            element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.tag == "g":
            element.attrib.pop("id", None)  # nothing refers to it, and each panel has the same ones
        if style := element.get("style"):
            element.set("style", re.sub("#[0-9a-f]{6}", lambda found: _VARIABLES.get(found[0], found[0]), style))
    # The page decides the size; the view box keeps the shape.
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": description}
    svg = Markup(ElementTree.tostring(root, encoding="unicode"))
    return Markup('<figure class="plot"><figcaption>{}</figcaption>{}</figure>').format(title, svg)
