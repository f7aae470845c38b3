"""Verdict rows as AlpacaEval's annotations, and the figures of its leaderboard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.length import preference

BASELINE, MODEL = "baseline", "model"
"""Names of the systems where an annotation names none."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """A verdict row, and every field of the annotation that it came from."""

    row: VerdictRow
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """AlpacaEval's figures of one system against one baseline; rates are percentages, a draw is half a win.

    Attributes:
        win_rate: mean of preference - 1; NaN without rows.
        standard_error: of the win rate over rows (n - 1 in the variance); NaN for fewer than two.
        n_wins: preferences above 1.5; ``n_wins_base`` those below, ``n_draws`` those of exactly 1.5 (or 0).
        n_total: preferences that are not null.
        discrete_win_rate: the win rate with each preference rounded to a win or a loss, draws apart.
    """

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float


def leaderboard(rows: Iterable[VerdictRow]) -> Leaderboard:
    """What AlpacaEval's ``get_winrate`` makes of the same preferences; an inconsistent verdict is a draw there."""
    given = np.array([p for row in rows if (p := preference(row)) is not None], dtype=np.float64)
    wins, losses, total = int((given > 0.5).sum()), int((given < 0.5).sum()), len(given)
    draws = total - wins - losses
    return Leaderboard(
        win_rate=float(given.mean()) * 100 if total else math.nan,
        standard_error=float(stats.sem(given)) * 100 if total > 1 else math.nan,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=total,
        discrete_win_rate=(wins + draws / 2) / total * 100 if total else math.nan,
    )


def annotation_from_dict(fields: Mapping[str, Any], file: object, line: int) -> Annotation:
    """Read one object of an ``annotations.json``; output_2 of generator_2 is the row's first system.

    preference 2 is a win of generator_2, 1 a loss, 1.5 (or 0, as older files have it) a draw, anything between is the
    side of 1.5 that it is on with that strength, and null is unparsable. The item is the field ``item``, which we
    write, otherwise the instruction, otherwise the line.

    Raises:
        InputError: a field of another type, or a preference outside [1, 2].
    """
    given = fields["preference"]
    if given is not None and (isinstance(given, bool) or not isinstance(given, int | float)):
        raise _bad(file, line, "preference", given, "a number in [1, 2] or null")
    strength = None if given is None or math.isnan(given) else (1.5 if given == 0 else given) - 1.0
    if strength is not None and not 0 <= strength <= 1:
        raise _bad(file, line, "preference", given, "a number in [1, 2] or null")
    for name in ("item", "instruction", "input", "output_1", "output_2", "generator_1", "generator_2", "annotator"):
        if not isinstance(fields.get(name), str | None):
            raise _bad(file, line, name, fields[name], "text")
    asked = "\n\n".join(part for name in ("instruction", "input") if (part := fields.get(name)))
    outputs = (fields.get("output_2"), fields.get("output_1"))
    row = VerdictRow(
        item=fields.get("item") or (Prompt.of(asked).key if asked else f"{line:05d}"),
        first=fields.get("generator_2") or MODEL,
        second=fields.get("generator_1") or BASELINE,
        verdict=Verdict.UNPARSABLE if strength is None else _verdict(strength),
        strength=strength,
        judge=fields.get("annotator") or "",
        lengths=None if None in outputs else tuple(len(str(y)) for y in outputs),  # type: ignore[arg-type]
    )
    return Annotation(row, fields)


def annotation_as_dict(annotation: Annotation) -> dict[str, Any]:
    """The object to write: the annotation's own fields as they were read, or, for a row that was judged here,
    the fields that the caller gave (instruction, output_1, output_2), the systems, the judge and the preference.
    """
    row, own = annotation.row, annotation.fields
    if "preference" in own:
        return dict(own)
    value = preference(row)
    named = {"generator_1": row.second, "generator_2": row.first, "annotator": row.judge, "item": row.item}
    return {**own, **named, "preference": None if value is None else value + 1.0}


def _verdict(strength: float) -> Verdict:
    return Verdict.TIE if strength == 0.5 else Verdict.WIN if strength > 0.5 else Verdict.LOSS


def _bad(file: object, line: int, name: str, found: object, expected: str) -> InputError:
    return InputError.at(file, line=line, field=name, found=repr(found)[:60], expected=expected)
