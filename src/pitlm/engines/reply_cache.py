"""Requests to a paid model and its replies in one SQLite file, so that no reply is paid for twice."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.io.atomic import TABLES, make_private


class ReplyCache:
    """Replies by request. A request must hold everything that changes its reply. Several processes may share one file.

    Each reply is committed at once, so a process that is killed loses only replies that had not arrived.

    Raises:
        InputError: the file is no SQLite database. Also in any call: the file cannot be read, or cannot be written to
            (a full disk).
        OSError: the folder cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        make_private(self.path)
        self._lock = threading.Lock()
        if self._run(TABLES)[0] not in (None, "replies"):
            raise InputError.at(self.path, found="another program's database", expected="a cache of replies")
        self._run("PRAGMA journal_mode = WAL")
        self._run(
            "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, request TEXT NOT NULL, response TEXT NOT NULL, "
            "at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID"
        )

    @cached_property
    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)

    def _run(self, statement: str, *values: str) -> Any:
        """The first row of a statement's result, None if the result is empty. One thread at a time runs a statement."""
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            expected = "a cache of replies, or a new file, on a disk with room"
            raise InputError.at(self.path, found=str(error), expected=expected) from error

    def get(self, request: Mapping[str, Any]) -> str | None:
        """The raw response to an equal request, None if there is none."""
        row = self._run("SELECT response FROM replies WHERE key = ?", _key(request))
        return None if row is None else str(row[0])

    def put(self, request: Mapping[str, Any], response: str) -> None:
        """Store the raw response to a request. A response that is stored already is not replaced."""
        values = (_key(request), json.dumps(request, ensure_ascii=False), response)
        self._run("INSERT OR IGNORE INTO replies (key, request, response) VALUES (?, ?, ?)", *values)

    def __len__(self) -> int:
        return int(self._run("SELECT COUNT(*) FROM replies")[0])


def _key(request: Mapping[str, Any]) -> str:
    """The sha256 of a request as canonical JSON."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
