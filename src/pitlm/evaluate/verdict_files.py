"""Files of verdicts: the rows that `pit judge` writes, and AlpacaEval's annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.verdicts import VerdictRow
from pitlm.data.readers import read_sound_rows
from pitlm.evaluate.alpaca import Annotation, annotation_as_dict, annotation_from_dict
from pitlm.io.atomic import write_text

_EXPECTED = "a verdict row (with a field 'verdict') or an AlpacaEval annotation (with a field 'preference')"


def read_verdicts(sources: Iterable[Path]) -> list[Annotation]:
    """Every verdict of ``sources``, in order; each line or object tells by its fields which kind it is.

    Raises:
        InputError: no such file, nothing in it, something else in it, or a system that is compared with itself.
    """
    found: list[Annotation] = []
    for source in sources:
        before = len(found)
        for raw in read_sound_rows(source):
            found.append(_verdict(raw.data, raw.file, raw.line))
        if len(found) == before:
            raise InputError.at(source, found="no verdicts", expected=_EXPECTED)
    return found


def write_annotations(path: Path, annotations: Sequence[Annotation]) -> None:
    """Write an ``annotations.json`` in AlpacaEval's shape; fields that were read and are not ours are kept."""
    write_text(path, json.dumps([annotation_as_dict(a) for a in annotations], indent=2) + "\n")


def _verdict(data: object, file: str, line: int) -> Annotation:
    if not isinstance(data, Mapping) or not {"verdict", "preference"} & set(data):
        raise InputError.at(file, line=line, found=_shown(data), expected=_EXPECTED)
    annotation = annotation_from_dict(data, file, line) if "preference" in data else _row(data, file, line)
    row = annotation.row
    if row.first == row.second:
        raise InputError.at(file, line=line, found=f"'{row.first}' compared with itself", expected="two systems")
    return annotation


def _row(data: Mapping[str, Any], file: str, line: int) -> Annotation:
    for name in ("item", "first", "second"):
        if not isinstance(data.get(name), str):
            raise InputError.at(file, line=line, field=name, found=_shown(data.get(name)), expected="text")
    try:
        row = VerdictRow.from_dict(data)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError.at(file, line=line, found=f"a broken row ({error})", expected="a verdict row") from error
    if row.strength is not None and not (isinstance(row.strength, int | float) and 0 <= row.strength <= 1):
        raise InputError.at(
            file, line=line, field="strength", found=_shown(row.strength), expected="a number in [0, 1]"
        )
    if row.lengths is not None and [type(n) for n in row.lengths] != [int, int]:
        raise InputError.at(file, line=line, field="lengths", found=_shown(row.lengths), expected="two whole numbers")
    return Annotation(row)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return f"an object with the fields {', '.join(map(str, value)) or '(none)'}"[:120]
    return "nothing" if value is None else repr(value)[:60]
