"""Reads files, folders and data sets of the hub as raw rows; each row knows where it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.data.file_formats import Unreadable
from pitlm.data.row_fields import RowError
from pitlm.io.named_parts import find_part, part_names

READERS = {
    "jsonl": "pitlm.data.file_formats:read_jsonl",
    "json": "pitlm.data.file_formats:read_json",
    "csv": "pitlm.data.file_formats:read_csv",
    "parquet": "pitlm.data.file_formats:read_parquet",
}
"""The readers of files, by suffix. Another package adds a reader with an entry point of the group ``pitlm.readers``
whose name is the suffix. A reader takes a path and yields, for each row, the number of its line (or of the row), from
1, and its content."""

Reader = Callable[[Path], Iterator[tuple[int, object]]]

_HUB_NAME = re.compile(r"(?P<name>[\w][\w.-]*/[\w][\w.-]*)(:(?P<split>[\w.\-\[\]%:+]+))?")
# Files that live beside data and hold none: those of the hub's tools, and what `pit data prepare` writes.
_NOT_DATA = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "summary.json", "rejects.jsonl",
}  # fmt: skip


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

    def error(self, error: RowError) -> InputError:
        """The error of this row as a message for the user: file, line, field, found, expected."""
        return InputError(f"{self.where}: {error}")


def read_rows(source: str | Path) -> Iterator[RawRow]:
    """Yield every row of ``source``: a file, a folder of files, or a hub name ``org/name[:split]``.

    A path that exists wins over a hub name. Folders are read recursively in sorted order; hidden files, other kinds of
    file and the metadata files of data folders are ignored. Jsonl, csv and parquet are streamed. A line that cannot be
    decoded is yielded with :class:`Unreadable` as its data; blank lines are skipped.

    Raises:
        InputError: no such source, nothing readable in it, or a file that is damaged as a whole.
    """
    if source == "":  # as a path it is the folder where one stands
        raise InputError(f"data: found an empty name, expected {_formats()}, a folder of them, or org/name")
    path = Path(source)
    if path.is_dir():
        files = _files_below(path)
    elif path.exists():
        if _suffix(path) is None:
            raise InputError.at(path, found=f"a file of kind '{path.suffix}'", expected=_formats())
        files = [path]
    else:
        yield from _hub_rows(str(source))
        return
    for file in files:
        reader: Reader = find_part("pitlm.readers", READERS, _suffix(file) or "")
        yield from (RawRow(str(file), line, data) for line, data in reader(file))


def check_outside(source: str | Path, out: Path, option: str = "--out") -> None:
    """Refuse an output folder inside of the source folder: the next reading would take the output for data.

    Args:
        option: the option that names the output, for the message.

    Raises:
        InputError: ``source`` is a folder, and ``out`` is in it.
    """
    folder = Path(source)
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise InputError.at(
            out, found=f"a folder inside the source {source}", expected=f"one outside it; give {option}"
        )


def read_sound_rows(source: str | Path) -> Iterator[RawRow]:
    """Yield every row of ``source`` as :func:`read_rows` does, up to a line that cannot be decoded.

    Raises:
        InputError: as :func:`read_rows` does, and for such a line.
    """
    for raw in read_rows(source):
        try:
            raw.value()
        except RowError as error:
            raise raw.error(error) from error
        yield raw


def _files_below(folder: Path) -> list[Path]:
    """The data files under ``folder``, sorted by path."""

    def visible(path: Path) -> bool:
        return not any(part.startswith(".") for part in path.relative_to(folder).parts)

    found = sorted(path for path in folder.rglob("*") if path.is_file() and visible(path))
    files = [path for path in found if path.name not in _NOT_DATA and _suffix(path) is not None]
    if not files:
        raise InputError.at(folder, found=f"a folder with no data files ({len(found)} others)", expected=_formats())
    return files


@cache
def _suffixes() -> list[str]:
    return part_names("pitlm.readers", READERS)


def _formats() -> str:
    """The kinds of file that can be read, for an error message."""
    more = "".join(f" or .{suffix}" for suffix in _suffixes()[len(READERS) :])
    return f".jsonl, .json, .csv (each also .gz) or .parquet{more}"


def _suffix(path: Path) -> str | None:
    """The suffix that names a file's reader; None where no reader has it."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix[1:]
    return suffix if suffix in _suffixes() and not name.endswith(".parquet.gz") else None


def _hub_rows(source: str) -> Iterator[RawRow]:
    match = _HUB_NAME.fullmatch(source)
    # If the first part is a folder here, the name is far likelier a mistyped path than an organisation of the hub.
    if match is None or Path(source).parent.is_dir() or _suffix(Path(source)) is not None:
        raise InputError.at(
            source, found="no such file or folder", expected=f"{_formats()}, a folder of them, or org/name"
        )
    name, split = match["name"], match["split"] or "train"
    import datasets

    try:
        rows: Any = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        summary = str(error).strip().split("\n")[0][:160]
        raise InputError(
            f"{source}: this path does not exist here, and as a hub data set (split '{split}') it could not be loaded: "
            f"{summary}. Give a path to {_formats()}, or a folder of them."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield RawRow(f"{name}:{split}", number, row)
