"""Reads the preferences that a model can learn from, and counts every row that is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from pitlm.core.errors import InputError
from pitlm.core.nouns import Preference
from pitlm.data.pairs import RowDropped, parse_preference
from pitlm.data.readers import RawRow, read_rows
from pitlm.data.row_fields import RowError
from pitlm.io.atomic import atomic_writer

EQUAL_RESPONSES = "equal responses"
EMPTY_RESPONSE = "empty response"
EMPTY_PROMPT = "empty prompt"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The preferences of a source, and what became of its rows: ``read`` = kept + dropped + invalid."""

    preferences: list[Preference]
    read: int
    dropped: dict[str, int] = field(default_factory=dict)
    invalid: int = 0


def reading(read: int, kept: int, dropped: dict[str, int], invalid: int) -> str:
    """Say in one line how many rows were read, kept, dropped and invalid."""
    parts = [f"{kept:,} kept", *(f"{count:,} dropped ({reason})" for reason, count in sorted(dropped.items()))]
    parts += [f"{invalid:,} invalid"] if invalid else []
    return f"Read {read:,} rows: {', '.join(parts)}"


def load_preferences(
    source: str | Path,
    *,
    skip_invalid: bool = False,
    rejects: Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Loaded:
    """Read the preferences of ``source`` (see :func:`pitlm.data.readers.read_rows`).

    Rows with nothing to learn from are dropped and counted by reason: equal responses (apart from space around them),
    an empty response or prompt, two conversations whose prompts differ.

    Args:
        skip_invalid: count invalid rows and go on; by default the first invalid row stops the reading.
        rejects: the file for skipped rows: one line of JSON for each, with its file, line, reason and row.
        limit: stop once this many preferences are kept (None: read everything).
        progress: show a count of rows on stderr while reading, where that is a terminal.

    Raises:
        InputError: no such source; an invalid row, named by file, line and field; or nothing left to learn from.
    """
    kept: list[Preference] = []
    dropped: Counter[str] = Counter()
    read = invalid = 0
    with ExitStack() as stack:
        out = stack.enter_context(atomic_writer(rejects)) if skip_invalid and rejects is not None else None
        for row in stack.enter_context(_counted(read_rows(source), progress)):
            read += 1
            try:
                preference = parse_preference(row.value())
                _check_worth(preference)
                kept.append(preference)
            except RowDropped as drop:
                dropped[drop.reason] += 1
            except RowError as error:
                if not skip_invalid:
                    raise row.error(error) from error
                invalid += 1
                _write_reject(out, row, error)
            if limit is not None and len(kept) >= limit:
                break
    if not kept:
        parts = [f"{count} dropped for {reason}" for reason, count in dropped.items()]
        parts += [f"{invalid} invalid"] if invalid else []
        found = f"no preference to learn from in {read} rows" + (f" ({', '.join(parts)})" if parts else "")
        raise InputError.at(source, found=found, expected="at least one pair of two different responses to one prompt")
    return Loaded(kept, read, dict(dropped), invalid)


def _check_worth(preference: Preference) -> None:
    """Raise RowDropped for a pair that teaches nothing."""
    chosen, rejected = preference.chosen.strip(), preference.rejected.strip()
    if chosen == rejected:
        raise RowDropped(EQUAL_RESPONSES)
    if not chosen or not rejected:
        raise RowDropped(EMPTY_RESPONSE)
    if not preference.prompt.text.strip():
        raise RowDropped(EMPTY_PROMPT)


def _write_reject(out: TextIO | None, row: RawRow, error: RowError) -> None:
    if out is None:
        return
    reject = {"file": row.file, "line": row.line, "reason": str(error), "row": row.raw}
    # ASCII with escapes: a rejected row may hold what UTF-8 cannot; str for the dates and bytes of parquet.
    out.write(json.dumps(reject, default=str) + "\n")


@contextmanager
def _counted(rows: Iterator[RawRow], progress: bool) -> Iterator[Iterator[RawRow]]:
    """Yield the rows unchanged; count them on stderr if ``progress`` is set and stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("Reading row {task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        yield iter(bar.track(rows, description=""))
