"""How a run speaks to the person in front of it: one console, one kind of progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

WIDTH = 120


def make_console() -> Console:
    """A console that does not fold to 80 columns where the output is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def make_table(title: str, *columns: str) -> Table:
    """A table whose first column has names and whose other columns have figures."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(columns):
        table.add_column(heading, justify="right" if number else "left")
    return table


def make_progress(*more: ProgressColumn) -> Progress:
    """A bar with what is done, the time that it took and the time left, and whatever columns come after."""
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("  {task.description}"), *columns, *more, console=make_console())


@contextmanager
def progress_bar(
    title: str, total: int | None, note: Callable[[], str] | None = None, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; yields the function that moves the bar on.

    Args:
        note: returns a text that stands behind the bar.
        done: how much was done before.
    """
    columns = () if note is None else (TextColumn("{task.fields[note]}"),)
    with make_progress(*columns) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def advance(count: int) -> None:
            progress.update(task, advance=count, note=note() if note is not None else "")

        yield advance
