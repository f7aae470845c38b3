"""Files of verdicts: the rows that `pit judge` writes, and AlpacaEval's annotations."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pitlm.core.errors import InputError, describe
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.data.readers import read_rows
from pitlm.data.row_fields import RowError
from pitlm.evaluate.alpaca import preference
from pitlm.io.atomic import write_text
from pitlm.io.digest import digest

_EXPECTED = "a verdict row (with a field 'verdict') or an AlpacaEval annotation (with a field 'preference')"
_TEXTS = ("item", "instruction", "input", "output_1", "output_2", "generator_1", "generator_2", "annotator")


@dataclass(frozen=True, slots=True)
class Annotation:
    """A verdict row, and every field of the annotation that it came from."""

    row: VerdictRow
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_verdicts(sources: Iterable[Path]) -> list[Annotation]:
    """Every verdict of ``sources``, in order; the fields of each line or object tell which of the two kinds it is.

    Raises:
        InputError: no such file, nothing in it, something else in it, or two sources with the same content.
    """
    found: list[Annotation] = []
    contents: dict[str | None, Path] = {}
    for source in sources:
        if (other := contents.setdefault(digest(source), source)) is not source:
            raise InputError.at(source, found=f"the content of {other} again", expected="each verdict once")
        before = len(found)
        for raw in read_rows(source):
            with raw.errors_named():
                found.append(_verdict(raw.value(), raw.line))
        if len(found) == before:
            raise InputError.at(source, found="no verdicts", expected=_EXPECTED)
    return found


def write_annotations(path: Path, annotations: Sequence[Annotation]) -> None:
    """Write an ``annotations.json`` in AlpacaEval's shape. Fields that pitlm does not know are kept."""
    write_text(path, json.dumps([annotation_as_dict(a) for a in annotations], indent=2) + "\n")


def annotation_from_dict(fields: Mapping[str, Any], line: int) -> Annotation:
    """Read one object of an ``annotations.json``; output_2 of generator_2 is the row's first system.

    preference 2 is a win of generator_2, 1 a loss, 1.5 (or 0, in older files) a draw, and null is unparsable. Any other
    number is a win or a loss, depending on its side of 1.5, with that strength. The item is the field ``item``, which
    we write, otherwise the instruction, otherwise the line.

    Raises:
        RowError: a field of another type, or a preference outside [1, 2].
    """
    given, strength, verdict = fields["preference"], None, Verdict.UNPARSABLE
    if type(given) in (int, float) and (given == 0 or 1 <= given <= 2):
        strength = (given or 1.5) - 1.0
        verdict = Verdict.TIE if strength == 0.5 else Verdict.WIN if strength > 0.5 else Verdict.LOSS
    elif given is not None and not (isinstance(given, float) and math.isnan(given)):
        raise RowError("preference", describe(given), "a number in [1, 2] or null")
    for name in _TEXTS:
        if not isinstance(fields.get(name), str | None):
            raise RowError(name, describe(fields[name]), "text")
    asked = "\n\n".join(part for name in ("instruction", "input") if (part := fields.get(name)))
    outputs = (fields.get("output_2"), fields.get("output_1"))
    item = fields.get("item") or (Prompt.of(asked).key if asked else f"{line:05d}")
    first, second = fields.get("generator_2") or "model", fields.get("generator_1") or "baseline"
    lengths: Any = None if None in outputs else tuple(len(str(y)) for y in outputs)
    told = {"strength": strength, "judge": fields.get("annotator") or "", "lengths": lengths}
    return Annotation(VerdictRow(item, first, second, verdict, **told), fields)


def annotation_as_dict(annotation: Annotation) -> dict[str, Any]:
    """The object to write.

    Returns:
        The annotation's own fields as they were read. For a row that was judged here: the fields that the caller gave
        (instruction, output_1, output_2), the systems, the judge and the preference.
    """
    row, own = annotation.row, annotation.fields
    if "preference" in own:
        return dict(own)
    value = preference(row)
    named = {"generator_1": row.second, "generator_2": row.first, "annotator": row.judge, "item": row.item}
    return {**own, **named, "preference": None if value is None else value + 1.0}


def _verdict(data: object, line: int) -> Annotation:
    if not isinstance(data, Mapping) or not {"verdict", "preference"} & set(data):
        raise RowError(None, describe(data), _EXPECTED)
    return annotation_from_dict(data, line) if "preference" in data else Annotation(_row(data))


def _row(data: Mapping[str, Any]) -> VerdictRow:
    try:
        return VerdictRow.from_dict(data)
    except ValidationError as error:
        wrong = error.errors()[0]
        found = "nothing" if wrong["type"] == "missing" else describe(wrong["input"])
        raise RowError(".".join(map(str, wrong["loc"])), found, f"a verdict row ({wrong['msg']})") from error
