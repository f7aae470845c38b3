"""How each format of file becomes rows: JSON lines, JSON, CSV and parquet, gzipped or not.

Each ``read_`` function takes a path and yields, for each row, the number of its line (or of the row), from 1, and its
content.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pitlm.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The data of a row that could not be decoded; the caller decides whether that stops the reading.

    Attributes:
        line: where in ``raw`` the error is.
    """

    found: str
    expected: str
    raw: str
    line: int = 1


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzipped file for bytes; damage inside a gzip becomes an InputError."""
    if not path.name.lower().endswith(".gz"):
        with open(path, "rb") as plain:
            yield plain
        return
    try:
        with gzip.open(path, "rb") as unzipped:
            yield cast(BinaryIO, unzipped)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError.at(path, found=f"a damaged gzip file ({error})", expected="a complete gzip file") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, object]]:
    """Each line that is not blank is a row."""
    with opened(path) as handle:
        # Bytes, because text mode would also break lines at separators that JSON strings may hold.
        for number, raw in enumerate(handle, start=1):
            if raw.strip():
                yield number, _decoded(raw)


def _decoded(raw: bytes) -> object:
    """The JSON value in some bytes, or why there is none."""
    text, line = raw.decode("utf-8-sig", errors="replace"), 1
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Unreadable(f"a byte that is not UTF-8 (at byte {error.start + 1})", "UTF-8 text", text)
    except json.JSONDecodeError as error:
        line, why = error.lineno, f"{error.msg.removesuffix(' at')} at column {error.colno}"
    except RecursionError:
        why = "nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        why = str(error)
    return Unreadable(f"broken JSON ({why})", "one JSON object on the line", text.rstrip("\n"), line)


def read_json(path: Path) -> Iterator[tuple[int, object]]:
    """The file is a list of rows, or an object whose ``data`` is that list."""
    with opened(path) as handle:
        value = _decoded(handle.read())
    expected = "a list of objects, or an object whose 'data' is one"
    if isinstance(value, Unreadable):
        if "Extra data" in value.found:  # several values in a row: JSON lines, which hubs often name .json
            yield from read_jsonl(path)
            return
        raise InputError.at(path, line=value.line, found=value.found, expected=expected)
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        kind = "an object without a list 'data'" if isinstance(value, dict) else type(value).__name__
        raise InputError.at(path, found=kind, expected=expected)
    yield from enumerate(rows, start=1)


def read_csv(path: Path) -> Iterator[tuple[int, object]]:
    """The first record names the columns; the number of a row is the line on which its record starts."""
    csv.field_size_limit(2**31 - 1)  # a conversation easily exceeds the module's 128 KiB
    with opened(path) as binary:
        # strict: a quote that is never closed would otherwise swallow the rest of the file as one cell
        records = csv.reader(io.TextIOWrapper(binary, encoding="utf-8-sig", newline=""), strict=True)
        header: list[str] | None = None
        start = 1
        try:
            for record in records:
                if header is None:
                    header = [name.strip() for name in record]
                elif record:
                    yield start, _csv_record(header, record)
                start = records.line_num + 1
        except csv.Error as error:
            raise InputError.at(path, line=start, found=f"broken CSV ({error})", expected="a CSV record") from error
        except UnicodeDecodeError as error:
            raise InputError.at(path, line=start, found="a byte that is not UTF-8", expected="UTF-8 text") from error


def _csv_record(header: list[str], record: list[str]) -> object:
    if len(record) != len(header):
        raw = io.StringIO()
        csv.writer(raw).writerow(record)
        expected = f"{len(header)}, as in the header"
        return Unreadable(f"{len(record)} cells", expected, raw.getvalue().rstrip("\r\n"))
    return {name: _cell(text) for name, text in zip(header, record, strict=True)}


def _cell(text: str) -> object:
    """A cell that holds chat messages, in JSON or as Python prints them, becomes a list; any other stays a string."""
    for parse in (json.loads, ast.literal_eval) if text.lstrip().startswith("[{") else ():
        try:
            value: object = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and all(isinstance(item, dict) and "role" in item for item in value):
            return value
    return text


def read_parquet(path: Path) -> Iterator[tuple[int, object]]:
    """Batches of rows are read one after the other."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the file's
            raise
        summary = str(error).strip().split("\n")[0][:120]
        raise InputError.at(path, found=f"a damaged parquet file ({summary})", expected="a parquet file") from error
