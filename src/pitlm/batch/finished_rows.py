"""What a batch job has finished so far, on disk: a job that was killed goes on from there.

``OUT.partial`` begins with a line that says what is improved and how; each further line is one finished row, in the
order in which they were finished. At the end the rows go to ``OUT`` in the order of the input, and those that failed
to ``OUT.failed.jsonl``. A line that was not written to its end is cut off, and its row is done again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from pitlm.core.errors import InputError
from pitlm.core.nouns import Trace
from pitlm.data.items import Failure, Item
from pitlm.io.atomic import atomic_writer

SYNC_EVERY = 2.0
"""Seconds; what is finished survives a kill at once, and a power cut after so long."""


class NothingImproved(InputError):
    """Every row of a job failed; what is to be written is written."""

    @classmethod
    def of(cls, first: Mapping[str, Any], rows: int, path: Path) -> Self:
        """Say why the first of so many rows failed, and where they are."""
        others = f" (all {rows} rows failed: {path})" if rows > 1 else ""
        return cls(f"{first['where']}: {first['reason']}{others}")


def failed_path(output: Path) -> Path:
    """Where the rows go that could not be improved."""
    return output.with_name(output.name.removesuffix(".jsonl") + ".failed.jsonl")


class Journal:
    """The finished rows of one job, or of one part of it; a context manager.

    Args:
        output: where the rows go in the end.
        settings: everything that changes an answer; another job's journal is refused.
        fresh: begin anew, whatever is there.
        first: the number of the first row.
        failures: where the rows go that failed; by default beside the output.

    Raises:
        InputError: a journal of other settings, or one that another process is writing.
    """

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        *,
        fresh: bool = False,
        first: int = 0,
        failures: Path | None = None,
    ) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self.failed_path = failures or failed_path(output)
        self.settings = json.loads(json_line(settings))
        self.fresh = fresh
        self.first = first
        self.failed: set[int] = set()
        self._offsets = array("q")  # of each row's line, or -1
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_alone(self.path)
        try:
            if self.fresh:
                self._file.truncate(0)
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if not len(self) and self.path.exists():
            self.path.unlink()
        self._file.close()

    def __len__(self) -> int:
        return sum(offset >= 0 for offset in self._offsets)

    def _load(self) -> None:
        """Read what is there, and cut off what was not written to its end."""
        self._file.seek(0)
        good, first = 0, True
        for raw in self._file:
            try:
                row = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                break
            if first:
                check_settings(self.path, row, self.settings)
                first = False
            else:
                self._note(row["item"], good, failed="failed" in row)
            good += len(raw)
        self._file.truncate(good)
        if first:
            self._append([self.settings])

    def _note(self, number: int, offset: int, *, failed: bool) -> None:
        place = number - self.first
        self._offsets.extend([-1] * (place + 1 - len(self._offsets)))
        self._offsets[place] = offset
        if failed:
            self.failed.add(number)

    def __contains__(self, item: Item | Failure) -> bool:
        """Whether a row is finished.

        Raises:
            InputError: another row was finished in its place.
        """
        place = item.number - self.first
        if place >= len(self._offsets) or self._offsets[place] < 0:
            return False
        if self._read(item.number)["row"] != _digest(item.row):
            raise InputError(
                f"{item.where}: found another row than the one that {self.path} has; give the same input, another -o, "
                "or --force to begin anew"
            )
        return True

    def add(self, finished: list[tuple[Item, Trace] | Failure]) -> None:
        """Keep rows that have just been finished."""
        rows = []
        for one in finished:
            item, made = (
                (one, {"failed": one.as_dict()}) if isinstance(one, Failure) else (one[0], one[0].improved(one[1]))
            )
            content = made if isinstance(one, Failure) else {"made": made}
            rows.append({"item": item.number, "row": _digest(item.row), **content})
        self._append(rows)

    def _append(self, rows: list[dict[str, Any]]) -> None:
        offset = self._file.seek(0, os.SEEK_END)
        for row in rows:
            line = json_line(row).encode()
            self._file.write(line)
            if "item" in row:
                self._note(row["item"], offset, failed="failed" in row)
            offset += len(line)
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _read(self, number: int) -> dict[str, Any]:
        self._file.seek(self._offsets[number - self.first])
        row: dict[str, Any] = json.loads(self._file.readline())
        return row

    def made(self) -> Iterator[dict[str, Any]]:
        """The rows that did not fail, in the order of the input."""
        numbers = range(self.first, self.first + len(self._offsets))
        return (self._read(number)["made"] for number in numbers if number not in self.failed)

    def finish(self, rows: int) -> None:
        """Write the output and the failures, each whole or not at all, and take the journal away.

        Args:
            rows: of the input.

        Raises:
            NothingImproved: no row that did not fail.
            InputError: fewer rows than the journal has.
        """
        if rows < len(self._offsets):
            raise InputError(
                f"{self.path}: has {len(self._offsets)} rows, but the input only {rows}; give the same input, another "
                "-o, or --force to begin anew"
            )
        failures = [self._read(number)["failed"] for number in sorted(self.failed)]
        if failures:
            with atomic_writer(self.failed_path) as file:
                file.writelines(map(json_line, failures))
        else:
            self.failed_path.unlink(missing_ok=True)
        if len(failures) < rows:
            with atomic_writer(self.output) as file:
                file.writelines(map(json_line, self.made()))
        self.path.unlink()
        if len(failures) == rows:
            raise NothingImproved.of(failures[0], rows, self.failed_path)


def open_alone(path: Path) -> BinaryIO:
    """Open a file to read and append, for this process alone.

    Raises:
        InputError: another process has it.
    """
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(f"{path}: another process is writing it") from error
    return file


def check_settings(path: Path, found: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a job that was begun otherwise.

    Raises:
        InputError: which settings are others.
    """
    changed = [name for name in {**found, **now} if found.get(name) != now.get(name)]
    if changed:
        listed = "; ".join(f"{name}: found {found.get(name)}, now {now.get(name)}" for name in changed)
        raise InputError(
            f"{path}: was begun with other settings ({listed}); give the same, or another -o, or --force to begin anew"
        )


def json_line(row: Any) -> str:
    """One line of JSON. Dates and the like, which parquet has, become strings."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character in a field that we do not read
        text = json.dumps(row, default=str)
    return text + "\n"


def _digest(row: object) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]
