"""Turns rows, in any of the usual shapes, into preferences that a model can learn from, and counts all other rows.

:mod:`pitlm.data.shapes` makes of each row the fields ``chosen`` and ``rejected`` in one of three shapes:

- an explicit ``prompt`` (a string or chat messages) with ``chosen`` and ``rejected`` as strings or as messages;
- the whole conversation as chat messages in ``chosen`` and ``rejected``, the last turn the assistant's (UltraFeedback;
  a string ``prompt`` beside them repeats what they hold);
- the whole conversation as a transcript ``\\n\\nHuman: ... \\n\\nAssistant: ...`` in each (HH-RLHF), or the part
  before the responses as such a transcript in ``prompt``.

The last turn of a conversation is the response, and all turns before it are the prompt. If the two conversations have
different prompts, the row does not compare two responses to one prompt. Such a row is dropped; it is no error.

Real transcripts are untidy. Space around a turn is removed. Two turns in a row by the same speaker (a model wrote the
marker itself) become one turn, joined with a blank line. But first the two transcripts are compared: if one of them has
more turns, their prompts differ. Their prompts also differ if only one transcript ends on a turn of the human.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import cycle, groupby, islice, product
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pitlm.core.errors import InputError, describe, list_fields
from pitlm.core.nouns import Message, Preference, Role
from pitlm.data.readers import RawRow, read_rows
from pitlm.data.row_fields import RowError, Turns, as_prompt, check_text, read_messages, with_system
from pitlm.data.shapes import ASKED, MOST_PAIRS, RowDropped, is_rated, pairs_in, renamed, scores_contradict, thumb
from pitlm.io.atomic import atomic_writer
from pitlm.io.console import make_console

EQUAL_RESPONSES = "equal responses"
PROMPTS_DIFFER = "prompts differ"
ONE_LABEL = "prompts with one label"

_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_SHAPES = "a string, or a list of messages that ends with the assistant's"

Kind = Literal["text", "transcript", "messages"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The preferences of a source, and the counts of the pairs in its rows: ``read`` = kept + dropped + invalid.

    Attributes:
        contradicted: number of kept pairs whose own scores prefer the rejected answer.
        origins: file and line of each preference, and the field ``id`` of its row; empty if no file has them.
    """

    preferences: list[Preference]
    read: int
    dropped: dict[str, int] = field(default_factory=dict)
    invalid: int = 0
    contradicted: int = 0
    origins: list[tuple[str, str | None]] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """How many rows were read, kept, dropped (by reason) and invalid."""
        kept = len(self.preferences)
        return {"read": self.read, "kept": kept, "dropped": dict(self.dropped), "invalid": self.invalid}


def reading(read: int, kept: int, dropped: Mapping[str, int], invalid: int) -> str:
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
    columns: Mapping[Any, str] | None = None,
    progress: bool = False,
) -> Loaded:
    """Read the preferences of ``source`` (see :func:`pitlm.data.readers.read_rows`).

    Rows with nothing to learn from are dropped and counted by reason: equal responses (apart from space around them),
    an empty response or prompt, two conversations whose prompts differ.

    Args:
        skip_invalid: count invalid rows and go on; by default the first invalid row stops the reading.
        rejects: the file for skipped rows: one line of JSON for each, with its file, line, reason and row.
        limit: stop once this many preferences are kept (None: read everything).
        columns: the column of each field that has another name in the data.
        progress: show a count of rows on stderr while reading, if stderr is a terminal.

    Raises:
        InputError: no such source; an invalid row, named by file, line and field; or nothing left to learn from.
    """
    kept: list[Preference] = []
    origins: list[tuple[str, str | None]] = []
    dropped: Counter[str] = Counter()
    read = invalid = contradicted = 0
    console = make_console(stderr=True)
    shown = (SpinnerColumn(), TextColumn("Reading row {task.completed:,}"), TimeElapsedColumn())
    bar = Progress(*shown, console=console, transient=True, disable=not (progress and console.is_terminal))
    with bar, atomic_writer(rejects) if skip_invalid and rejects is not None else nullcontext() as out:
        for row, pair in bar.track(_pairs(source, columns or {}), description=""):
            read += 1
            try:
                if isinstance(pair, RowDropped | RowError):
                    raise pair
                preference = parse_preference(pair)
                _check_worth(preference)
                kept.append(preference)
                origins.append((row.where, row.id))
                contradicted += scores_contradict(row.data)
            except RowDropped as drop:
                dropped[str(drop)] += 1
            except RowError as error:
                if not skip_invalid:
                    raise InputError(f"{row.where}: {error}") from error
                invalid += 1
                if out is not None:
                    reject = {"file": row.file, "line": row.line, "reason": str(error), "row": row.raw}
                    # Escaped, because UTF-8 cannot hold every rejected row; str is for dates and bytes of parquet.
                    out.write(json.dumps(reject, default=str) + "\n")
            if limit is not None and len(kept) >= limit:
                break
    if not kept:
        parts = [f"{count} dropped for {reason}" for reason, count in dropped.items()]
        parts += [f"{invalid} invalid"] if invalid else []
        found = f"no preference to learn from in {read} rows" + (f" ({', '.join(parts)})" if parts else "")
        raise InputError.at(source, found=found, expected="at least one pair of two different responses to one prompt")
    return Loaded(kept, read, dict(dropped), invalid, contradicted, origins)


def _pairs(source: str | Path, columns: Mapping[Any, str]) -> Iterator[tuple[RawRow, object]]:
    """The pairs in every row, each with its row; or why a row has none. Pairs of rated rows come last."""
    rated: dict[str, list[tuple[RawRow, Mapping[str, Any]]]] = {}
    for raw in read_rows(source):
        try:
            row = renamed(raw.value(), columns)
            if isinstance(row, Mapping) and is_rated(row):
                thumb(row)
                key = json.dumps([row.get(name) for name in (*ASKED, "input", "system")], default=str)
                rated.setdefault(key, []).append((raw, row))
                continue
        except RowError as error:
            yield raw, error
            continue
        yield from _shaped(raw, row)
    for rows in rated.values():
        up, down = ([own for own in rows if thumb(own[1]) is side] for side in (True, False))
        if not (up and down):
            yield from ((raw, RowDropped(ONE_LABEL)) for raw, _ in rows)
        few = len(up) * len(down) <= MOST_PAIRS
        both = product(up, down) if few else islice(zip(cycle(up), cycle(down)), max(len(up), len(down)))
        for (raw, good), (_, bad) in both:
            yield from _shaped(raw, {**good, "chosen": good["completion"], "rejected": bad["completion"]})


def _shaped(raw: RawRow, row: object) -> Iterator[tuple[RawRow, object]]:
    try:
        yield from ((raw, pair) for pair in (pairs_in(row) if isinstance(row, Mapping) else [row]))
    except (RowDropped, RowError) as error:
        yield raw, error


def _check_worth(preference: Preference) -> None:
    """Raise RowDropped for a pair that teaches nothing."""
    chosen, rejected = preference.chosen.strip(), preference.rejected.strip()
    if chosen == rejected:
        raise RowDropped(EQUAL_RESPONSES)
    if not chosen or not rejected:
        raise RowDropped("empty response")
    if not preference.prompt.text.strip():
        raise RowDropped("empty prompt")


def parse_preference(data: object) -> Preference:
    """Read one row.

    Empty responses are kept here: :func:`load_preferences` drops and counts them.

    Raises:
        RowError: a missing field, a value of the wrong type, turns that do not alternate, or a conversation that ends
            on the wrong role.
        RowDropped: the two conversations do not share their prompt.
    """
    if not isinstance(data, Mapping):
        raise RowError(None, describe(data), "an object with the fields chosen and rejected, and mostly prompt")
    stated, kind = _stated_prompt(data)
    chosen, rejected = (_side(data, field, stated, kind) for field in ("chosen", "rejected"))
    overrun = [turns[-1].role == "user" for turns in (chosen, rejected)]
    if all(overrun):
        raise RowError("chosen", "a transcript that ends on 'Human' (user)", "it to end on 'Assistant'")
    if any(overrun) or (len(chosen) > 1 and len(rejected) > 1 and chosen[:-1] != rejected[:-1]):
        raise RowDropped(PROMPTS_DIFFER)
    chosen, rejected = _merged(chosen), _merged(rejected)
    told = chosen[:-1] or rejected[:-1]
    if stated is None:
        prompt = as_prompt(told, "chosen")
    else:
        prompt = as_prompt(_reconciled(stated, told, kind) if told else stated, "prompt")
    prompt = with_system(prompt, data.get("system"))
    return Preference(prompt, chosen[-1].content, rejected[-1].content)


def _stated_prompt(data: Mapping[str, object]) -> tuple[Turns | None, Kind]:
    """The turns of the field ``prompt`` (None if the row has no such field) and the shape of the field."""
    if "prompt" not in data:
        return None, "messages"
    value = data["prompt"]
    kind: Kind = "messages"
    if isinstance(value, str):
        check_text(value, "prompt")
        # A string is a transcript if it starts with the human's marker, or ends with the assistant's marker.
        open_end = value.rstrip().endswith("\n\nAssistant:") and _has_both_speakers(value)
        kind = "transcript" if open_end or value.startswith("\n\nHuman:") else "text"
        turns = _merged(_transcript(value)) if kind == "transcript" else [Message("user", value)]
        if turns[-1] == Message("assistant", ""):
            turns.pop()
    else:
        turns = read_messages(value, "prompt", "a string or a list of messages")
    return list(as_prompt(turns, "prompt").messages), kind


def _side(data: Mapping[str, object], field: str, stated: Turns | None, kind: Kind) -> Turns:
    """The turns in the field. The last turn is the response, and may be the only turn."""
    if field not in data:
        raise RowError(field, f"no such field (the row has {list_fields(data)})", _SHAPES)
    value = data[field]
    if isinstance(value, str):
        check_text(value, field)
        if _has_both_speakers(value) and (stated is None or (kind != "messages" and value.startswith("\n\nHuman:"))):
            return _transcript(value)
        if stated is None:
            transcripts = "'\\n\\nHuman: … \\n\\nAssistant: …' transcripts"
            expected = f"a prompt field, or conversations as messages or as {transcripts}"
            raise RowError(field, f"{describe(value)} and no field 'prompt' in the row", expected)
        return [Message("assistant", value.strip() if kind == "transcript" else value)]
    turns = read_messages(value, field, _SHAPES)
    if turns[-1].role != "assistant":
        raise RowError(field, f"a conversation that ends on '{turns[-1].role}'", "it to end on 'assistant'")
    if len(turns) == 1:
        if stated is None:
            found = "a lone assistant turn and no field 'prompt' in the row"
            raise RowError(field, found, "the turns before it as well")
        return turns
    if stated is not None and turns[0].role == "assistant":
        turns = stated + turns
    as_prompt(turns[:-1], field)
    return turns


def _reconciled(stated: Turns, told: Turns, kind: Kind) -> Turns:
    """The longer of two versions of a prompt: that of the field and that of the conversations.

    Raises:
        RowDropped: the longer version does not have the shorter one in it.
    """
    if stated in (told[-len(stated) :], told[: len(stated)]):
        return told
    if stated[-len(told) :] == told:
        return stated
    if kind == "text" and stated[0].content.strip() in [turn.content.strip() for turn in told]:
        return told
    raise RowDropped(PROMPTS_DIFFER)


def _has_both_speakers(text: str) -> bool:
    return set(_MARKER.findall(text)) == set(_SPEAKERS)


def _transcript(text: str) -> Turns:
    """Every turn of a transcript, without space around it. Text before the first marker is a system turn."""
    before, *rest = _MARKER.split(text)
    turns = [Message("system", before.strip())] if before.strip() else []
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return turns + [Message(_SPEAKERS[speaker], content.strip()) for speaker, content in pairs]


def _merged(turns: Turns) -> Turns:
    """Turns in a row of one speaker as one turn, joined with a blank line."""
    return [
        Message(role, "\n\n".join(turn.content for turn in run if turn.content))
        for role, run in groupby(turns, key=lambda turn: turn.role)
    ]
