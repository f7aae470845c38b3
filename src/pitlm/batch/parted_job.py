"""A job that several processes share: the input in parts, each with a journal and an output file of its own.

While the job is under way ``OUT.partial`` is a folder. ``job`` is the journal with the settings, which the process that
leads holds open; ``journals`` has the journals of parts that are not finished, ``parts`` the finished output files and
``failed`` the rows that could not be improved. When every part is there, ``parts`` becomes ``OUT`` in one step. Its
files, one after the other, are the file that one process would have written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

from pitlm.batch.batch_job import BatchJob
from pitlm.batch.finished_rows import Journal, NothingImproved, failed_path, open_alone, write_failures
from pitlm.core.errors import InputError
from pitlm.data.items import Failure, Item, read_items

PATTERN = "part-*.jsonl"
MADE = ("journals", "parts", "failed")
TRIES = 10
"""A part that was begun so often and not finished stops the job: it may be what kills the processes."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that stand together in the input; their items have the numbers that the rows have there."""

    number: int
    items: tuple[Item | Failure, ...]


def cut(file: Path, rows: int) -> Iterator[Part]:
    """Cut the input into parts of so many rows.

    Raises:
        InputError: nothing readable there.
    """
    items = read_items(file)
    for number in count():
        part = tuple(islice(items, rows))
        if not part:
            return
        yield Part(number, part)


class PartedJob:
    """The folder of a job in parts; a context manager for the process that leads, while the others write parts.

    Args:
        output: the folder that the parts become in the end.
        settings: everything that changes an answer or the parts. The folder of another job is refused.
        fresh: begin anew, whatever is there, and replace ``output``.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".partial")
        self.failed_path = failed_path(output)
        self.settings, self.fresh = settings, fresh

    def __enter__(self) -> Self:
        """Begin the job, or go on with it.

        Raises:
            InputError: the folder has a job of other settings, or one that another process leads.
        """
        made = [self.folder / name for name in MADE]
        self._job = open_alone(self.folder / "job", self.settings, fresh=self.fresh, begins_without=made)
        shutil.rmtree(self.folder / "tries", ignore_errors=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._job.close()
        if not any(any((self.folder / name).glob("*")) for name in MADE):
            shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> frozenset[int]:
        """The numbers of the parts that are done."""
        ended = {path.name for name in ("parts", "failed") for path in (self.folder / name).glob(PATTERN)}
        under_way = {path.name for path in (self.folder / "journals").glob(PATTERN)}
        return frozenset(int(name[5:].removesuffix(".jsonl")) for name in ended - under_way)

    def improve(self, part: Part, make_job: Callable[[Iterator[Item | Failure]], BatchJob]) -> int:
        """Improve one part, going on from where an earlier attempt was killed. Any process may do this.

        Returns:
            The number of tokens that were generated in this attempt.

        Raises:
            InputError: another process is at this part, nothing can be had of an engine, or the part was tried too
                often.
        """
        name, tokens = f"part-{part.number:06}.jsonl", 0
        output, failures, path = (self.folder / kind / name for kind in ("parts", "failed", "journals"))
        if (output.exists() or failures.exists()) and not path.exists():
            return 0  # the process that finished this part was killed before it could say so
        with Journal(output, {**self.settings, "part": part.number}, path=path, failures=failures) as journal:
            self._count(name, part)
            for finished in make_job(journal.unfinished(part.items)):
                tokens += journal.add(finished)
            with suppress(NothingImproved):  # a part may fail as a whole; the job may not
                journal.finish()
        return tokens

    def _count(self, name: str, part: Part) -> None:
        tries = self.folder / "tries" / name
        tries.parent.mkdir(exist_ok=True)
        with tries.open("a") as file:
            file.write(".")
        if tries.stat().st_size > TRIES:
            where = f"{part.items[0].where} to {part.items[-1].where}"
            raise InputError(
                f"{where}: {TRIES} processes died over these rows (out of memory?); what is finished is kept, and the "
                "same command goes on"
            )

    def finish(self, parts: int) -> int:
        """Write the failures, and put the parts in the place of the output.

        Args:
            parts: the number of parts of the input.

        Returns:
            How many rows failed.

        Raises:
            NothingImproved: every row failed.
            RuntimeError: a part is missing.
        """
        if missing := set(range(parts)) - self.finished():
            raise RuntimeError(f"{self.folder}: {len(missing)} of {parts} parts are missing, {min(missing)} the first")
        failed = write_failures(self.failed_path, _lines((self.folder / "failed").glob(PATTERN)))
        made = self.folder / "parts"
        some = any(made.glob(PATTERN))
        if some:
            for left in made.glob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink()
            if self.output.exists():
                self.output.rename(self.folder / "replaced")
            made.rename(self.output)
        shutil.rmtree(self.folder)
        if not some:
            raise NothingImproved.of(self.failed_path, failed)
        return failed

    def made(self) -> Iterator[dict[str, Any]]:
        """The rows of the output, in the order of the input."""
        return map(json.loads, _lines(self.output.glob(PATTERN)))


def _lines(files: Iterable[Path]) -> Iterator[str]:
    for path in sorted(files):
        with path.open(encoding="utf-8", newline="\n") as lines:
            yield from lines
