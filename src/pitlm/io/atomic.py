"""Write files and folders whole: a reader finds the old content or the new content, never a part of the new."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pitlm.core.errors import InputError, loading

TABLES = "SELECT group_concat(name) FROM sqlite_schema WHERE type = 'table'"
"""Asks an SQLite file for its tables, so that we write to no other program's file."""


@contextmanager
def atomic_writer(path: Path) -> Iterator[TextIO]:
    """Yield a UTF-8 text handle whose content becomes ``path`` when the block ends without an error.

    Missing parent folders are created. When the block raises, ``path`` stays as it was and the temporary file is gone.

    Raises:
        InputError: there is something else than a file, such as a device or a pipe.
        OSError: the folder cannot be written to, or the disk is full.
    """
    path = path.resolve()  # a link stays a link, and its file is replaced
    if path.exists() and not path.is_file():
        raise InputError.at(path, found="no regular file", expected="a file, or nothing yet, to write to")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file is opened by name: tempfile would give it mode 0600, which hides it from others who share the folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write to a full disk names no file
            error.filename = str(path)
        raise


def make_private(path: Path) -> None:
    """Make an empty file that only its owner may read or write. A file that exists stays as it is.

    No error is raised here: SQLite raises one when it opens the file.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step (UTF-8, parents created).

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    with atomic_writer(path) as handle:
        handle.write(text)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line to ``path`` in one step.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    with atomic_writer(path) as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json_lines(path: Path, read: Callable[[dict[str, Any]], Any] = dict) -> list[Any]:
    """The objects of a file that :func:`write_json_lines` wrote; ``read`` makes a value of each object's fields.

    Raises:
        InputError: no such file, or a line that ``read`` does not take.
    """
    made = []
    with loading(path, "file of this run"), path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):  # not splitlines, which splits within a text that holds U+2028
            with loading(f"{path}:{number}", "row of this run"):
                made.append(read(json.loads(line)))
    return made


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which replaces ``path`` when the block ends without an error.

    When the block raises, ``path`` stays as it was. If two processes write it at once, one of the new folders stays.

    Raises:
        OSError: the folder above cannot be written to, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    earlier = made.with_suffix(".earlier")
    made.mkdir()
    try:
        yield made
        if path.exists():
            path.rename(earlier)
        made.rename(path)
    except BaseException:
        if earlier.exists() and not path.exists():
            earlier.rename(path)
        for left in (made, earlier):  # `earlier` is still there only if another process put a folder at `path`
            shutil.rmtree(left, ignore_errors=True)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
