"""The tables of experiments as Markdown, and a picture of each."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pitlm.evaluate.statistics import Interval
from pitlm.io.atomic import write_text
from pitlm.io.templates import template
from pitlm.report.plots import draw_rows

SIGNED = ("Delta", "Delta by R_P", "Delta by R_PIT", "gap")
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
    """A mean with its interval, such as ``+3.1 [+1.0, +5.2]``; a dash if there was nothing to measure."""
    if cell[0] is None:
        return "-"
    large = max(abs(value) for value in cell if value is not None) >= 10
    form = f"{{:{'+' if figure in SIGNED else ''}.{1 if large or figure.startswith('Delta') else 2}f}}"
    estimate, *bounds = (None if value is None else form.format(value) for value in cell)
    return str(estimate) if None in bounds else f"{estimate} [{bounds[0]}, {bounds[1]}]"


def write_page(found: Mapping[str, Any], page: Path) -> None:
    """Write the page and, in a folder beside it, a picture of the first figure of each experiment."""
    for name, one in found.items():
        figure = next(iter(next(iter(one["table"].values()))))
        means = {row: cells[figure]["mean"] for row, cells in one["table"].items() if figure in cells}
        rows = {row: Interval(*(math.nan if v is None else v for v in mean)) for row, mean in means.items()}
        draw_rows(figure, rows, page.with_suffix(".pictures") / f"{Path(name).stem}.svg")
    write_text(page, tables(found, page.with_suffix(".pictures").name))
