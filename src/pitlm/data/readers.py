"""Reads files, folders and data sets of the hub as raw rows; each row knows where it came from.

Files are JSON lines, JSON, CSV and parquet, gzipped or not, and what ``save_to_disk`` of the library datasets writes.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from pitlm.core.errors import InputError, first_line, loading, placed, refuse_device
from pitlm.data.row_fields import RowError
from pitlm.io.named_parts import find_part, part_names

READERS = {
    "jsonl": "pitlm.data.readers:read_jsonl",
    "json": "pitlm.data.readers:read_json",
    "csv": "pitlm.data.readers:read_csv",
    "parquet": "pitlm.data.readers:read_parquet",
    "arrow": "pitlm.data.readers:read_arrow",
}
"""The readers of files, by suffix. Another package adds a reader with an entry point of the group ``pitlm.readers``
whose name is the suffix. A reader takes a path and yields, for each row, the number of its line (or of the row), from
1, and its content."""

LONGEST, LARGEST = 2**26, 2**28
"""Most bytes of a line (64 MiB) and of a .json file (256 MiB): a gzip file of a few kilobytes can hold gigabytes."""

_HUB_NAME = re.compile(r"(?P<name>[\w][\w.-]*/[\w][\w.-]*)(:(?P<split>[\w.\-\[\]%:+]+))?")
# Files that lie beside data and hold no data: those of the hub's tools and those of `pit data prepare`.
_NOT_DATA = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "summary.json", "rejects.jsonl",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The data of a row that could not be decoded; the caller decides whether that stops the reading.

    Attributes:
        line: line of the error within ``raw``, from 1.
    """

    found: str
    expected: str
    raw: str
    line: int = 1


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was found. ``line`` counts from 1: lines in jsonl and csv, rows elsewhere."""

    file: str
    line: int
    data: object

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def id(self) -> str | None:
        """The field ``id`` as text, if the row has one."""
        return str(self.data["id"]) if isinstance(self.data, Mapping) and self.data.get("id") is not None else None

    @property
    def raw(self) -> object:
        """The row as it was, decoded or not."""
        return self.data.raw if isinstance(self.data, Unreadable) else self.data

    def value(self) -> object:
        """What the row holds.

        Raises:
            RowError: the row could not be decoded.
        """
        if isinstance(self.data, Unreadable):
            raise RowError(None, self.data.found, self.data.expected)
        return self.data

    def errors_named(self) -> AbstractContextManager[None]:
        """Turn a RowError of this row into a message for the user: file, line, field, found, expected."""
        return placed(self.where, RowError)


def read_rows(source: str | Path) -> Iterator[RawRow]:
    """Yield every row of ``source``: a file, a folder of files, or a hub name ``org/name[:split]``.

    A path that exists wins over a hub name. Folders are read recursively in sorted order; hidden files, other kinds of
    file and the metadata files of data folders are ignored. Jsonl, csv and parquet are streamed. A line that cannot be
    decoded is yielded with :class:`Unreadable` as its data; blank lines are skipped.

    Raises:
        InputError: no such source, nothing readable in it, or a file that is damaged as a whole.
    """
    if source == "":  # as a path, an empty name is the current folder
        raise InputError(f"data: found an empty name, expected {_formats()}, a folder of them, or org/name")
    path = Path(source)
    if not path.exists():
        yield from _hub_rows(str(source))
        return
    refuse_device(path)
    if path.is_file() and _suffix(path) is None:
        raise InputError.at(path, found=f"a file of kind '{path.suffix}'", expected=_formats())
    for file in _files_below(path) if path.is_dir() else [path]:
        read = find_part("pitlm.readers", READERS, _suffix(file) or "")
        yield from (RawRow(str(file), line, data) for line, data in read(file))


def check_outside(source: str | Path, out: Path, option: str = "--out") -> None:
    """Refuse an output folder inside of the source, which would be read as data, and one that holds the source.

    Args:
        option: the option that names the output, for the message.

    Raises:
        InputError: one of the two is in the other.
    """
    folder = Path(source)
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        found = f"a folder inside the source {source}"
        raise InputError.at(out, found=found, expected=f"one outside it; give {option}")
    if folder.exists() and folder.resolve().is_relative_to(out.resolve()):
        raise InputError.at(out, found="a folder that holds the source", expected=f"another; give {option}")


def _files_below(folder: Path) -> list[Path]:
    """The data files under ``folder``, sorted by path."""

    visible = (path for path in folder.rglob("*") if "/." not in f"/{path.relative_to(folder).as_posix()}")
    found = sorted(path for path in visible if path.is_file())
    data = (path for path in found if path.name not in _NOT_DATA and not path.name.startswith("cache-"))
    files = [path for path in data if _suffix(path) is not None]
    if not files:
        raise InputError.at(folder, found=f"a folder with no data files ({len(found)} others)", expected=_formats())
    return files


@cache
def _suffixes() -> list[str]:
    return part_names("pitlm.readers", READERS)


def _formats() -> str:
    """The kinds of file that can be read, for an error message."""
    more = "".join(f" or .{suffix}" for suffix in _suffixes()[len(READERS) :])
    return f".jsonl, .json, .csv (each also .gz), .parquet or .arrow{more}"


def _suffix(path: Path) -> str | None:
    """The suffix that names a file's reader; None if no reader has this suffix."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix[1:]
    return suffix if suffix in _suffixes() and not name.endswith((".parquet.gz", ".arrow.gz")) else None


def _hub_rows(source: str) -> Iterator[RawRow]:
    match = _HUB_NAME.fullmatch(source)
    # If the first part is a folder here, the name is far likelier a mistyped path than an organisation of the hub.
    if match is None or Path(source).parent.is_dir() or _suffix(Path(source)) is not None:
        expected = f"{_formats()}, a folder of them, or org/name"
        raise InputError.at(source, found="no such file or folder", expected=expected)
    name, split = match["name"], match["split"] or "train"
    import datasets

    try:
        rows: Any = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{source}: this path does not exist here, and as a hub data set (split '{split}') it could not be loaded: "
            f"{first_line(error)[:160]}. Give a path to {_formats()}, or a folder of them."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield RawRow(f"{name}:{split}", number, row)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzipped file for bytes; damage inside a gzip becomes an InputError."""
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as handle:
            yield cast(BinaryIO, handle)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError.at(path, found=f"a damaged gzip file ({error})", expected="a complete gzip file") from error


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain or gzipped file, as bytes, so that a reader can name the line that is not UTF-8."""
    with opened(path) as handle:
        for number, line in enumerate(iter(partial(handle.readline, LONGEST), b""), start=1):
            if len(line) == LONGEST:
                raise InputError.at(path, line=number, found=f"{LONGEST:,} bytes or more", expected="a shorter line")
            yield line


def read_jsonl(path: Path) -> Iterator[tuple[int, object]]:
    """Each line that is not blank is a row."""
    for number, raw in enumerate(_lines(path), start=1):
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
        content = handle.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise InputError.at(path, found=f"more than {LARGEST:,} bytes of JSON", expected="JSON lines (.jsonl)")
    value = _decoded(content)
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
    csv.field_size_limit(LONGEST)  # a conversation easily exceeds the module's 128 KiB
    # strict: a quote that is never closed would otherwise swallow the rest of the file as one cell
    texts = (re.split(r"(?<=\r)(?!\n)", line.decode("utf-8-sig")) for line in _lines(path))
    records = csv.reader(chain.from_iterable(texts), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for record in records:
            if header is None:
                header = [name.strip() for name in record]
                if (twice := next((name for name in header if header.count(name) > 1), None)) is not None:
                    raise InputError.at(path, line=1, found=f"two columns '{twice}'", expected="one of each name")
            elif len(record) == len(header):
                yield start, dict(zip(header, record, strict=True))
            elif record:
                raw = io.StringIO()
                csv.writer(raw).writerow(record)
                expected = f"{len(header)}, as in the header"
                yield start, Unreadable(f"{len(record)} cells", expected, raw.getvalue().rstrip("\r\n"))
            start = records.line_num + 1
    except csv.Error as error:
        raise InputError.at(path, line=start, found=f"broken CSV ({error})", expected="a CSV record") from error
    except UnicodeDecodeError as error:
        raise InputError.at(path, line=start, found="a byte that is not UTF-8", expected="UTF-8 text") from error


def read_parquet(path: Path) -> Iterator[tuple[int, object]]:
    """Batches of rows are read one after the other."""
    import pyarrow.parquet

    with loading(path, "parquet file"), pyarrow.parquet.ParquetFile(path) as table:
        yield from enumerate((row for batch in table.iter_batches(1024) for row in batch.to_pylist()), start=1)


def read_arrow(path: Path) -> Iterator[tuple[int, object]]:
    """The file is one of those in a folder that ``save_to_disk`` of the library datasets wrote."""
    import pyarrow

    with loading(path, "file of Arrow data"), pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as batches:
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
