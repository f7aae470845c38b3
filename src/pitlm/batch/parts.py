"""A job that several processes share: the input in parts, each with a journal and an output file of its own.

While it is under way ``OUT.partial`` is a folder: ``job.json`` says what is improved and how, ``parts`` has what is
finished and the journals of what is not, ``failed`` the rows that could not be improved. When every part is there,
``parts`` becomes ``OUT`` in one step. Its files, one after the other, are the file that one process would have written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, BinaryIO, Self

from pitlm.batch.batch_job import BatchJob
from pitlm.batch.finished_rows import Journal, NothingImproved, check_settings, failed_path, json_line, open_alone
from pitlm.core.errors import InputError
from pitlm.data.items import Failure, Item, read_items
from pitlm.io.atomic import atomic_writer, write_text

PATTERN = "part-*.jsonl"
TRIES = 10
"""A part that was begun so often and not finished stops the job: it may be what kills the processes."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that stand together in the input; they keep its numbers, which decide with the seed what they become."""

    number: int
    items: tuple[Item | Failure, ...]


def cut(file: Path, rows: int) -> Iterator[Part]:
    """The input, so many rows a part.

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
    """The folder of a job in parts; a context manager for the process that leads it, while the others write parts.

    Args:
        output: the folder that the parts become in the end.
        settings: everything that changes an answer or the parts; another job's folder is refused.
        fresh: begin anew, whatever is there, and replace ``output``.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".partial")
        self.failed_path = failed_path(output)
        self.settings: dict[str, Any] = json.loads(json_line(settings))
        self.fresh = fresh

    def __enter__(self) -> Self:
        """Begin, or go on.

        Raises:
            InputError: a job of other settings, or one that another process leads.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock: BinaryIO = open_alone(self.folder / "lock")
        try:
            self._begin()
        except BaseException:
            self._lock.close()
            raise
        return self

    def _begin(self) -> None:
        about = self.folder / "job.json"
        shutil.rmtree(self.folder / "tries", ignore_errors=True)
        if self.fresh:
            about.unlink(missing_ok=True)
        if about.exists():
            check_settings(about, json.loads(about.read_text(encoding="utf-8")), self.settings)
            return
        for name in ("parts", "failed"):  # of a job that is not to be gone on with: its settings went first
            shutil.rmtree(self.folder / name, ignore_errors=True)
        write_text(about, json.dumps(self.settings, indent=2) + "\n")

    def __exit__(self, *error: object) -> None:
        self._lock.close()
        if self.folder.exists() and not self.finished() and not any((self.folder / "parts").glob("*")):
            shutil.rmtree(self.folder)

    def finished(self) -> frozenset[int]:
        """The numbers of the parts that are done."""
        ended = {path.name for name in ("parts", "failed") for path in (self.folder / name).glob(PATTERN)}
        under_way = {path.stem for path in (self.folder / "parts").glob(PATTERN + ".partial")}
        return frozenset(int(name[5:].removesuffix(".jsonl")) for name in ended - under_way)

    def improve(self, part: Part, make_job: Callable[[Iterator[Item | Failure]], BatchJob]) -> int:
        """Improve one part, going on from where an earlier attempt was killed; any process may do this.

        Returns:
            Tokens generated in this attempt.

        Raises:
            InputError: another process is at it, nothing can be had of an engine, or it was tried too often.
        """
        name, tokens = f"part-{part.number:06}.jsonl", 0
        settings, failures = {**self.settings, "part": part.number}, self.folder / "failed" / name
        journal = Journal(self.folder / "parts" / name, settings, first=part.items[0].number, failures=failures)
        if (journal.output.exists() or failures.exists()) and not journal.path.exists():
            return 0  # the process that finished it was killed before it could say so
        with journal:
            self._count(name, part)
            for finished in make_job(item for item in part.items if item not in journal):
                journal.add(finished)
                tokens += sum(one[1].generated_tokens for one in finished if not isinstance(one, Failure))
            with suppress(NothingImproved):  # of the part: the job judges by all of them
                journal.finish(len(part.items))
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
            parts: of the input.

        Returns:
            How many rows failed.

        Raises:
            NothingImproved: no row that did not fail.
            RuntimeError: a part is missing.
        """
        if missing := set(range(parts)) - self.finished():
            raise RuntimeError(f"{self.folder}: {len(missing)} of {parts} parts are missing, {min(missing)} the first")
        failures = list(map(json.loads, _lines(sorted((self.folder / "failed").glob(PATTERN)))))
        if failures:
            with atomic_writer(self.failed_path) as file:
                file.writelines(map(json_line, failures))
        else:
            self.failed_path.unlink(missing_ok=True)
        made = self.folder / "parts"
        some = any(made.glob(PATTERN))
        if some:
            for left in made.glob(".*.tmp"):  # by a process that was killed while it wrote
                left.unlink()
            if self.output.exists():
                self.output.rename(self.folder / "replaced")
            made.rename(self.output)
        shutil.rmtree(self.folder)
        if not some:
            raise NothingImproved.of(failures[0], len(failures), self.failed_path)
        return len(failures)

    def made(self) -> Iterator[dict[str, Any]]:
        """The rows of the output, in the order of the input."""
        return map(json.loads, _lines(sorted(self.output.glob(PATTERN))))


def _lines(files: list[Path]) -> Iterator[str]:
    for path in files:
        with path.open(encoding="utf-8", newline="\n") as lines:
            yield from lines
