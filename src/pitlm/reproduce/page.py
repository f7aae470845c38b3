"""The tables of experiments as Markdown, and a picture of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from pitlm.io.atomic import atomic_writer, write_text
from pitlm.io.templates import template

SIGNED = ("Delta", "gap")
"""Figures that are shown with a sign."""


def tables(found: Mapping[str, Any], pictures: str | None = None) -> str:
    """A section for each experiment: the question, what the paper says, what is found here, and the table.

    Args:
        found: what :func:`pitlm.reproduce.reproduce.reproduce` returns, or the same read from JSON.
        pictures: folder of the pictures, as the page names it; None: a page for the terminal, with the tables alone.
    """
    page = template(
        "pitlm.reproduce", "page.j2", {"shown": shown, "stem": lambda name: Path(name).stem}, lstrip_blocks=True
    )
    return page.render(experiments=found, pictures=pictures)


def shown(cell: list[float | None], figure: str) -> str:
    """A mean with its interval, such as ``+3.1 [+1.0, +5.2]``."""
    large = max(abs(value) for value in cell if value is not None) >= 10
    form = f"{{:{'+' if figure in SIGNED else ''}.{1 if large or figure == 'Delta' else 2}f}}"
    estimate, *bounds = (None if value is None else form.format(value) for value in cell)
    return str(estimate) if None in bounds else f"{estimate} [{bounds[0]}, {bounds[1]}]"


def write_page(found: Mapping[str, Any], page: Path) -> None:
    """Write the page and, in a folder beside it of the same name, a picture of each experiment."""
    for name, one in found.items():
        draw(one, page.with_suffix("") / f"{Path(name).stem}.svg")
    write_text(page, tables(found, page.stem))


@matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "reproduce"})
def draw(one: Mapping[str, Any], path: Path) -> None:
    """An SVG of the first figure of an experiment: the mean of each row with its interval, and a dot for each seed."""
    [*rows] = one["table"]
    name = next(iter(one["table"][rows[0]]))
    figure = Figure(figsize=(7, 0.6 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        cell = one["table"][row].get(name) or {"mean": [None], "seeds": {}}
        estimate, *bounds = cell["mean"]
        if estimate is not None:
            axes.plot([estimate], [place], "o", color="#0072b2")
            axes.plot([own[0] for own in cell["seeds"].values()], [place] * len(cell["seeds"]), "|", color="gray")
        if None not in bounds and bounds:
            axes.plot(bounds, [place, place], color="#0072b2")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel(name)
    axes.grid(axis="x", alpha=0.3)
    with atomic_writer(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
