"""What a person sees of a batch job: how far it is, and what it did in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.text import Text

from pitlm.batch.finished_rows import Journal
from pitlm.batch.job_health import health
from pitlm.batch.parted_job import PartedJob
from pitlm.core.nouns import Trace
from pitlm.io.console import make_console, progress_bar
from pitlm.loop.calibration import Calibration

WATCHED = 10_000
"""The health of a job is read from at most this many traces, spread over the file."""


@contextmanager
def job_progress(total: int | None, finished: int) -> Iterator[Callable[[int, int], None]]:
    """Show a bar over the rows of a job; yields the function that is told how many rows and tokens are done."""
    rows, tokens, begin = 0, 0, monotonic()

    def speed() -> str:
        passed = monotonic() - begin
        return f"{rows / passed:.1f} rows/s, {tokens / passed:.0f} tokens/s"

    with progress_bar("improving", total, speed, finished) as move:

        def advance(more: int, generated: int) -> None:
            nonlocal rows, tokens
            rows, tokens = rows + more, tokens + generated
            move(more)

        yield advance


def print_summary(job: Journal | PartedJob, rows: int, failed: int, calibration: Calibration | None) -> None:
    """Say what a finished job has done.

    Args:
        rows: the number of rows of the input, of which ``failed`` could not be improved.
    """
    console = make_console()
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
    for line in [*said, *health(traces, calibration).sentences()]:
        console.print(Text(line), soft_wrap=True)


def print_trace(console: Console, trace: Trace) -> None:
    """Show what the loop did to one answer."""
    console.print(Text(f"original  {trace.original}"))
    for number, step in enumerate(trace.rounds, 1):
        decision = "accepted" if step.accepted else "rejected"
        console.print(Text(f"round {number}   {step.proposal}   (gap {step.gap:+.2f}, {decision})"))
    console.print(Text(f"final     {trace.final}"))
    console.print(Text(f"stopped: {trace.stop_reason}; {trace.generated_tokens} tokens generated"))
