"""The journal of a batch job: it keeps finished rows on disk, so that a job that was killed can go on.

``OUT.partial`` is an SQLite database with the settings of the job and one record for each finished row. Even if the
process is killed, the database has each record whole or not at all. At the end the rows go to ``OUT`` in the
order of the input, and the rows that failed to ``OUT.failed.jsonl``.
"""

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from pitlm.core.errors import InputError
from pitlm.core.nouns import Trace
from pitlm.data.items import Failure, Item
from pitlm.io.atomic import TABLES, atomic_writer

SYNC_EVERY = 2.0
"""Seconds. A finished row survives a kill of the process at once, and a power cut after this time."""

OTHERWISE = "another -o, or --force to begin anew"

BEGIN = files("pitlm.batch").joinpath("journal.sql").read_text("utf-8")


class NothingImproved(InputError):
    """Every row of a job failed. The file of the failures is written all the same."""

    @classmethod
    def of(cls, failed: Path, rows: int) -> Self:
        """Say why the first row failed, and which file has the others."""
        with failed.open(encoding="utf-8") as lines:
            first = json.loads(lines.readline())
        others = f" (all {rows} rows failed: {failed})" if rows > 1 else ""
        return cls(f"{first['where']}: {first['reason']}{others}")


class Taken(InputError):
    """Another process is writing the journal."""


def failed_path(output: Path) -> Path:
    """The file for the rows that could not be improved."""
    return output.with_name(output.name.removesuffix(".jsonl") + ".failed.jsonl")


class Journal:
    """The finished rows of one job, or of one part of a job; a context manager.

    Args:
        output: the file that the rows go to in the end.
        settings: everything that changes an answer. The journal of a job with other settings is refused.
        fresh: begin anew, whatever is there.
        files: the journal's own file, and the file for the rows that failed; by default both are beside the output.

    Raises:
        InputError: the journal has other settings, another process is writing it, or it cannot be read or written.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, Any], *, fresh: bool = False, files: tuple[Path, Path] | None = None
    ) -> None:
        self.output, self._settings, self._fresh = output, settings, fresh
        self.path, self.failed_path = files or (output.with_name(output.name + ".partial"), failed_path(output))

    def __enter__(self) -> Self:
        self._database = open_alone(self.path, self._settings, fresh=self._fresh)
        self._finished = self._run("SELECT count(*) FROM rows").fetchone()[0]
        self._read, self._synced, self._over = 0, time.monotonic(), False
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()
        if self._over or not self._finished:
            self.path.unlink()

    def __len__(self) -> int:
        return int(self._finished)

    def unfinished(self, items: Iterable[Item | Failure]) -> Iterator[Item | Failure]:
        """Yield the items of the input that are not finished.

        Raises:
            InputError: the journal has a different row under the number of one of the items.
        """
        for item in items:
            self._read += 1
            found = self._run("SELECT digest FROM rows WHERE number = ?", item.number).fetchone()
            if found is None:
                yield item
            elif found[0] != _digest(item.row):
                other = f"{item.where}: found another row than the one that {self.path} has"
                raise InputError(f"{other}; give the same input, {OTHERWISE}")

    def add(self, finished: list[tuple[Item, Trace] | Failure]) -> int:
        """Store rows that have just been finished.

        Returns:
            The number of tokens that were generated for them.
        """
        failures = [one for one in finished if isinstance(one, Failure)]
        improved = [one for one in finished if not isinstance(one, Failure)]
        records = [(one.number, _digest(one.row), True, _json_line(one.as_dict())) for one in failures]
        records += [(i.number, _digest(i.row), False, _json_line(i.improved(trace))) for i, trace in improved]
        with _errors_named(self.path):
            with self._database:
                self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", records)
            if time.monotonic() - self._synced > SYNC_EVERY:
                self._database.execute("PRAGMA wal_checkpoint")
                self._synced = time.monotonic()
        self._finished += len(records)
        return sum(trace.generated_tokens for _, trace in improved)

    def made(self) -> Iterator[dict[str, Any]]:
        """The rows that did not fail, in the order of the input."""
        return map(json.loads, self._lines(failed=False))

    def _lines(self, *, failed: bool) -> Iterator[str]:
        return (line for (line,) in self._run("SELECT line FROM rows WHERE failed = ? ORDER BY number", failed))

    def _run(self, statement: str, *values: int) -> sqlite3.Cursor:
        with _errors_named(self.path):
            return self._database.execute(statement, values)

    def finish(self) -> int:
        """Write the output and the failures, each whole or not at all. The end of the block deletes the journal.

        Returns:
            How many rows failed.

        Raises:
            NothingImproved: every row failed.
            InputError: the journal has more rows than the input had.
        """
        if self._read < self._finished:
            more = f"{self.path}: has {self._finished} rows, but the input only {self._read}"
            raise InputError(f"{more}; give the same input, {OTHERWISE}")
        failed = write_failures(self.failed_path, self._lines(failed=True))
        if failed < self._finished:
            with atomic_writer(self.output) as file:
                file.writelines(self._lines(failed=False))
        self._over = True
        if failed == self._finished:
            raise NothingImproved.of(self.failed_path, failed)
        return failed


def open_alone(
    path: Path, settings: Mapping[str, Any], *, fresh: bool = False, begins_without: Iterable[Path] = ()
) -> sqlite3.Connection:
    """Open the journal of a job for this process alone, until the connection is closed.

    Args:
        fresh: forget what the journal has.
        begins_without: folders to remove if the job is new.

    Raises:
        InputError: the journal has other settings, another process has it open, or it cannot be read or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    now = json.loads(_json_line(settings))
    with _errors_named(path):
        database = sqlite3.connect(path, timeout=0)
        try:
            if database.execute(TABLES).fetchone()[0] not in (None, "settings,rows"):
                raise InputError.at(path, found="another program's database", expected="the journal of a job")
            database.executescript(BEGIN)
            if fresh:
                database.execute("DELETE FROM settings")
                database.execute("DELETE FROM rows")
            stored = database.execute("SELECT content FROM settings").fetchone()
            then = json.loads(stored[0]) if stored else now
            changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
            if changed:
                listed = "; ".join(f"{name}: found {then.get(name)}, now {now.get(name)}" for name in changed)
                raise InputError(f"{path}: was begun with other settings ({listed}); give the same, or {OTHERWISE}")
            if not stored:
                for folder in begins_without:
                    shutil.rmtree(folder, ignore_errors=True)
                database.execute("INSERT INTO settings VALUES (?)", (json.dumps(now),))
            database.commit()
        except BaseException:
            database.close()
            raise
    return database


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn the database's errors into messages that name the journal."""
    try:
        yield
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise Taken(f"{path}: another process is writing it") from error
        raise InputError.at(path, found=str(error), expected="the journal of a job, on a disk with room") from error


def write_failures(path: Path, lines: Iterable[str]) -> int:
    """Write the rows that failed; without any, remove the file of an earlier job. Return how many failed."""
    with atomic_writer(path) as file:
        failed = sum(file.write(line) > 0 for line in lines)
    if not failed:
        path.unlink()
    return failed


def _json_line(row: Any) -> str:
    """One line of JSON. Dates and other values of parquet become strings."""
    try:
        text = json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
        text.encode()
    except ValueError:  # half a character in a field that we do not read, or NaN, for which JSON has null
        text = json.dumps(json.loads(json.dumps(row, default=str), parse_constant=lambda _: None))
    return text + "\n"


def _digest(row: object) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]
