"""Reads the journal of a batch job while another process writes it, or after that process was killed."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory


def finished_rows(journal: Path) -> dict[int, str]:
    """Return the finished rows by number; empty if there is no journal yet, or if it changes during reading."""
    with TemporaryDirectory() as folder:  # its writer has it locked
        copy = Path(folder) / journal.name
        try:
            for suffix in ("-wal", ""):
                if (written := journal.with_name(journal.name + suffix)).exists():
                    shutil.copy(written, copy.with_name(copy.name + suffix))
            with closing(sqlite3.connect(f"file:{copy}?mode=rw", uri=True)) as database:
                return dict(database.execute("SELECT number, line FROM rows"))
        except (sqlite3.Error, FileNotFoundError):
            return {}
