"""Output on the terminal: one console and one kind of progress bar."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from pitlm.io.visible import visible

WIDTH = 120


class VisibleConsole(Console):
    """A console that makes all text :func:`~pitlm.io.visible.visible`; only rich's own control sequences pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def make_console(*, stderr: bool = False) -> Console:
    """A console that reads no text as markup, and that does not fold to 80 columns in a file or a pipe."""
    console = VisibleConsole(stderr=stderr, markup=False)
    return console if console.is_terminal else VisibleConsole(stderr=stderr, markup=False, width=WIDTH)


def print_table(console: Console, table: Table) -> None:
    """Print a table whole, and widen its console: on a narrow terminal lines wrap, where rich would cut figures."""
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=10**4)).minimum)
    console.print(table)


@contextmanager
def progress_bar(
    title: str, total: int | None, note: Callable[[], str] | None = None, done: int = 0
) -> Iterator[Callable[[float], None]]:
    """Show progress and the time left while the block runs. Yield the function that moves the bar on.

    Args:
        note: returns a text to show on the right of the bar.
        done: the part of ``total`` that is finished when the block starts.
    """
    columns = (progress.TextColumn("  {task.description}"), progress.BarColumn(20), progress.MofNCompleteColumn())
    times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
    notes = () if note is None else (progress.TextColumn("{task.fields[note]}"),)
    with progress.Progress(*columns, *times, *notes, console=make_console()) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(count: float) -> None:
            bar.update(task, advance=count, note=note() if note is not None else "")

        yield advance
