"""People as judges: the order in which each rater sees the comparisons, and the votes in one SQLite file.

No row of the file is ever changed. A rater who revises a vote adds a row, and the rater's last row on a comparison
counts. A rater who takes a vote back adds a row without a verdict.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.verdicts import Comparison, Reply, Verdict, VerdictRow
from pitlm.io.atomic import make_private

APPLICATION_ID = 0x50_49_54_56  # "PITV" in the header of the file, so that we write to no other program's file
SCHEMA = files("pitlm.judge").joinpath("votes.sql").read_text("utf-8")
COUNTING = "vote IN (SELECT MAX(vote) FROM votes GROUP BY comparison, rater) AND verdict IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Ballot:
    """One comparison as one rater sees it.

    Attributes:
        key: the name of the ballot on the page; it tells the rater nothing about systems or order.
        swapped: the second response of the comparison is shown first, that is on the left.
    """

    key: str
    comparison: Comparison
    swapped: bool

    @property
    def shown(self) -> Comparison:
        """The comparison whose first response is the one on the left."""
        return self.comparison.swap() if self.swapped else self.comparison


def ballots(comparisons: Sequence[Comparison], rater: str, seed: str) -> list[Ballot]:
    """The comparisons in an order of the rater's own, each with left and right as drawn for this rater.

    The same seed gives the same order and the same sides. This shuffling is ours, not the paper's.

    Order and sides depend neither on which of the two systems is called the first, nor on the other comparisons.
    """
    made = []
    for comparison in comparisons:
        digest = hashlib.sha256(f"{seed}\n{rater}\n{_identity(comparison)}".encode()).digest()
        left = _sides(comparison)[digest[0] & 1]
        made.append(Ballot(digest[1:17].hex(), comparison, swapped=left != (comparison.systems[0], comparison.first)))
    return sorted(made, key=lambda ballot: ballot.key)


def _identity(comparison: Comparison) -> str:
    """A hash of the item, the prompt, both systems and both texts. The swapped comparison has the same hash."""
    text = json.dumps([comparison.item, comparison.prompt.as_messages(), _sides(comparison)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _sides(comparison: Comparison) -> list[tuple[str, str]]:
    """Both systems with their texts, in an order that swapping does not change."""
    return sorted(zip(comparison.systems, (comparison.first, comparison.second), strict=True))


class Votes:
    """The votes in ``path``. Several programs may have the file open at once.

    Raises:
        InputError: the file exists but is no file of votes, or the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_private(path)
        with self._open() as database:
            (mark,) = database.execute("PRAGMA application_id").fetchone()
            (tables,) = database.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
            if tables and mark != APPLICATION_ID:
                raise InputError.at(path, found="another program's database", expected="a file of votes")
            if not tables:
                database.executescript(SCHEMA)
            self.seed: str = database.execute("SELECT seed FROM secret").fetchone()[0]
            """The seed of all ballots. It stays secret: a rater who knows it could tell the systems apart."""

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, so that no two threads share one. People vote slowly enough for that."""
        try:
            with closing(sqlite3.connect(self.path, timeout=10)) as database, database:
                yield database
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            expected = "a file of votes that can be written to"
            raise InputError.at(self.path, found=str(error), expected=expected) from error

    def add(self, ballot: Ballot, rater: str, choice: Verdict | None, seconds: float | None = None) -> None:
        """Add a vote. It counts in place of the rater's earlier vote on the same comparison.

        Args:
            choice: seen from the left response; None takes the earlier vote back.

        Raises:
            sqlite3.IntegrityError: ``choice`` is neither win, tie nor loss.
        """
        comparison = ballot.comparison
        values = {
            "comparison": _identity(comparison),
            "item": comparison.item,
            "first": comparison.systems[0],
            "second": comparison.systems[1],
            "first_length": len(comparison.first),
            "second_length": len(comparison.second),
            "shown_left": "second" if ballot.swapped else "first",
            "verdict": choice.swap() if choice and ballot.swapped else choice,
            "rater": rater,
            "seconds": seconds,
        }
        with self._open() as database:
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO votes ({', '.join(values)}) VALUES ({marks})", [*values.values()])

    def undo(self, sheet: Sequence[Ballot], rater: str) -> Ballot | None:
        """Take back the rater's latest vote on the sheet. Return its ballot, or None if there is no vote."""
        by_identity = {_identity(ballot.comparison): ballot for ballot in sheet}
        last = next((by_identity[identity] for identity in self._voted(rater) if identity in by_identity), None)
        if last is not None:
            self.add(last, rater, None)
        return last

    def rated(self, sheet: Sequence[Ballot], rater: str) -> frozenset[str]:
        """The keys of the ballots on the sheet that the rater has voted on."""
        identities = set(self._voted(rater))
        return frozenset(ballot.key for ballot in sheet if _identity(ballot.comparison) in identities)

    def _voted(self, rater: str) -> list[str]:
        """The hashes of the comparisons on which a vote of the rater counts, the latest vote first."""
        with self._open() as database:
            counting = f"SELECT comparison FROM votes WHERE {COUNTING} AND rater = ? ORDER BY vote DESC"
            return [identity for (identity,) in database.execute(counting, (rater,))]

    def rows(self) -> list[VerdictRow]:
        """One row for each rater and comparison, in the order of the votes; the judge is the rater."""
        with self._open() as database:
            found = database.execute(
                "SELECT item, first, second, verdict, shown_left, rater, first_length, second_length, "
                "CAST(strftime('%s', time) AS REAL) FROM votes"
                f" WHERE {COUNTING} ORDER BY vote"
            ).fetchall()
        rows = []
        for item, first, second, verdict, shown_left, rater, *lengths, time in found:
            reply = Reply(shown_left == "second", Verdict(verdict))
            more: dict[str, Any] = {"replies": (reply,), "judge": rater, "lengths": tuple(lengths), "time": time}
            rows.append(VerdictRow(item, first, second, reply.verdict, **more))
        return rows
