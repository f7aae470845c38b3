"""One file through a batch job, with what a person sees of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.progress import TextColumn
from rich.text import Text

from pitlm.batch.batch_job import BatchJob
from pitlm.batch.finished_rows import Journal
from pitlm.batch.job_health import health
from pitlm.batch.parts import PartedJob
from pitlm.core.nouns import Trace
from pitlm.data.items import Failure, Item, count_rows, read_items
from pitlm.io.console import make_console, make_progress
from pitlm.models.calibration import Calibration

WATCHED = 10_000
"""Traces that the health of a job is read from, at most, spread over the file."""


def run_job(
    file: Path,
    journal: Journal,
    make_job: Callable[[Iterator[Item | Failure]], BatchJob],
    calibration: Calibration | None,
) -> None:
    """Improve the rows of a file that the journal does not have yet, write the output, and say what was done.

    Raises:
        InputError: nothing to read, another input than the journal's, or no row that could be improved.
    """
    console, read = make_console(), 0

    def unfinished() -> Iterator[Item | Failure]:
        nonlocal read
        for item in read_items(file):
            read += 1
            if item not in journal:
                yield item

    before = len(journal)
    if before:
        console.print(Text(f"{before} rows are finished already; going on from there."))
    with job_progress(count_rows(file), before) as advance:
        for finished in make_job(unfinished()):
            journal.add(finished)
            tokens = sum(one[1].generated_tokens for one in finished if not isinstance(one, Failure))
            advance(len(finished), tokens)
    said = summary(journal, len(journal), len(journal.failed), calibration)
    journal.finish(read)
    for line in said:
        console.print(Text(line), soft_wrap=True)


@contextmanager
def job_progress(total: int | None, finished: int) -> Iterator[Callable[[int, int], None]]:
    """A bar over the rows of a job; yields what is told how many rows were finished, and tokens generated."""
    with make_progress(TextColumn("{task.fields[speed]}")) as progress:
        task = progress.add_task("improving", total=total, completed=finished, speed="")
        rows, tokens, begin = 0, 0, monotonic()

        def advance(more: int, generated: int) -> None:
            nonlocal rows, tokens
            rows, tokens, passed = rows + more, tokens + generated, monotonic() - begin
            progress.update(task, advance=more, speed=f"{rows / passed:.1f} rows/s, {tokens / passed:.0f} tokens/s")

        yield advance


def summary(job: Journal | PartedJob, rows: int, failed: int, calibration: Calibration | None) -> list[str]:
    """What a job has done, for a person to read.

    Args:
        rows: of the input, of which so many ``failed``.
    """
    traces, stride = list[Trace](), 1 + rows // WATCHED
    reasons, changed = Counter[str](), 0
    for number, row in enumerate(job.made()):
        reasons[row["stop_reason"]] += 1
        changed += row["final"] != row["original"]
        if number % stride == 0:
            traces.append(Trace.from_dict({**row, "prompt": ""}))
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    said = [f"{reasons.total()} answers, {changed} changed. Stopped: {listed}. Written to {job.output}"]
    if failed:
        said.append(f"{failed} rows failed; they and the reasons are in {job.failed_path}")
    return [*said, *health(traces, calibration).sentences()]


def print_trace(console: Console, trace: Trace) -> None:
    """Show what the loop did to one answer."""
    console.print(Text(f"original  {trace.original}"))
    for number, step in enumerate(trace.rounds, 1):
        decision = "accepted" if step.accepted else "rejected"
        console.print(Text(f"round {number}   {step.proposal}   (gap {step.gap:+.2f}, {decision})"))
    console.print(Text(f"final     {trace.final}"))
    console.print(Text(f"stopped: {trace.stop_reason}; {trace.generated_tokens} tokens generated"))
