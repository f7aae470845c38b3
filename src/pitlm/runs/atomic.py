"""Files that are either the old one or the whole new one, never half of it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def atomic_writer(path: Path) -> Iterator[TextIO]:
    """Yield a UTF-8 text handle whose content becomes ``path`` when the block ends without an error.

    Missing parent folders are created. When the block raises, ``path`` stays as it was and the temporary file is gone.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by name, not with tempfile, whose 0600 mode would hide the result from others who share the folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that becomes ``path`` when the block ends without an error; what was there before is removed.

    Raises:
        OSError: the folder above cannot be written to, or the disk is full.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    temporary, before = (path.with_name(f".{path.name}.{mark}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
    except BaseException:
        if before.exists() and not path.exists():
            os.replace(before, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(before, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step (UTF-8, parents created).

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    with atomic_writer(path) as handle:
        handle.write(text)
