"""Files of verdicts: ours, AlpacaEval's, and files that are broken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitlm.core.errors import InputError
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.alpaca import leaderboard
from pitlm.evaluate.verdict_files import (
    Annotation,
    annotation_as_dict,
    annotation_from_dict,
    read_verdicts,
    write_annotations,
)

# As AlpacaEval writes it: no spaces after colons, slashes escaped, extra fields.
ALPACA = r"""[
  {
    "instruction":"What is 1\/2 of 4?",
    "output_1":"Two.",
    "generator_1":"gpt4_1106_preview",
    "dataset":"helpful_base",
    "output_2":"It is 2 (na\u00efvely).",
    "generator_2":"mine",
    "annotator":"weighted_alpaca_eval_gpt4_turbo",
    "preference":1.9999963,
    "time_per_example":0.5072296821,
    "raw_completion":{"token":"M"},
    "price_per_example":0.01307
  },
  {"instruction":"And 1\/4?", "output_1":"One.", "output_2":"1", "generator_1":"gpt4_1106_preview", "generator_2":"mine",
   "annotator":"weighted_alpaca_eval_gpt4_turbo", "preference":null}
]
"""


def test_annotations_are_read_and_written_back_as_they_are(tmp_path):
    path, again = tmp_path / "annotations.json", tmp_path / "again.json"
    path.write_text(ALPACA, encoding="utf-8")
    first, second = read_verdicts([path])
    assert (first.row.first, first.row.second) == ("mine", "gpt4_1106_preview")
    assert (first.row.verdict, first.row.strength) == (Verdict.WIN, 1.9999963 - 1)
    assert first.row.lengths == (len("It is 2 (naïvely)."), 4)
    assert (second.row.verdict, second.row.strength) == (Verdict.UNPARSABLE, None)
    assert first.row.judge == "weighted_alpaca_eval_gpt4_turbo"
    assert first.row.item != second.row.item
    write_annotations(again, [first, second])
    written = json.loads(again.read_text())
    assert written == json.loads(ALPACA)
    assert [list(entry) for entry in written] == [list(entry) for entry in json.loads(ALPACA)]


@given(st.one_of(st.none(), st.floats(1, 2)))
def test_a_preference_comes_back_to_the_last_digit(preference):
    row = annotation_from_dict({"preference": preference}, 1).row
    assert annotation_as_dict(Annotation(row))["preference"] == preference


def test_the_item_is_the_instruction_in_every_file():
    one, two, other = (
        annotation_from_dict({"preference": 2, "instruction": text, "generator_2": name}, n).row
        for n, (text, name) in enumerate([("q", "a"), ("q", "b"), ("r", "a")])
    )
    assert one.item == two.item != other.item


@pytest.mark.parametrize(
    ("preference", "verdict"),
    [
        (1, "loss"),
        (1.2, "loss"),
        (1.5, "tie"),
        (0, "tie"),
        (1.8, "win"),
        (2, "win"),
        (None, "unparsable"),
        (math.nan, "unparsable"),
    ],
)
def test_verdict_of_a_preference(preference, verdict):
    assert annotation_from_dict({"preference": preference}, 1).row.verdict == verdict


def test_rows_and_annotations_make_the_same_figures(tmp_path):
    rows = [
        VerdictRow(f"{n}", "a", "b", v, judge="j")
        for n, v in enumerate([Verdict.WIN, Verdict.LOSS, Verdict.TIE, Verdict.UNPARSABLE, Verdict.WIN])
    ]
    lines, alpaca = tmp_path / "rows.jsonl", tmp_path / "annotations.json"
    lines.write_text("".join(json.dumps(row.as_dict()) + "\n" for row in rows))
    read = read_verdicts([lines])
    assert [annotation.row for annotation in read] == rows
    write_annotations(alpaca, read)
    again = [annotation.row for annotation in read_verdicts([alpaca])]
    assert leaderboard(again) == leaderboard(rows)
    assert [(r.item, r.first, r.second, r.verdict, r.judge) for r in again] == [
        (r.item, r.first, r.second, r.verdict, r.judge) for r in rows
    ]


def test_texts_that_the_caller_knows_are_written():
    fields = {"instruction": "q", "output_1": "long", "output_2": "s"}
    written = annotation_as_dict(Annotation(VerdictRow("i", "mine", "theirs", Verdict.LOSS, judge="j"), fields))
    assert written == {
        **fields,
        "generator_1": "theirs",
        "generator_2": "mine",
        "annotator": "j",
        "item": "i",
        "preference": 1.0,
    }
    assert annotation_from_dict(written, 1).row.lengths == (1, 4)


ROW = {"item": "1", "first": "a", "second": "b", "verdict": "win"}
REPLY = {"swapped": False, "verdict": "win"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"preference": 2.5}, "field 'preference': found a number (2.5), expected a number in [1, 2] or null"),
        ({"preference": "2"}, "field 'preference': found a string ('2'), expected a number in [1, 2] or null"),
        ({"preference": True}, "field 'preference': found a boolean (True)"),
        ({"preference": 2, "output_1": 5}, "field 'output_1': found a number (5), expected text"),
        ({"instruction": "q"}, "found an object with the fields instruction, expected a verdict row"),
        ([1], "found a list of 1, expected a verdict row"),
        (
            {**ROW, "verdict": "victory"},
            "field 'verdict': found a string ('victory'), expected a verdict row (Input should be 'win'",
        ),
        ({**ROW, "colour": 1}, "field 'colour': found a number (1), expected a verdict row (Unexpected"),
        (
            {**ROW, "item": 7},
            "field 'item': found a number (7), expected a verdict row (Input should be a valid string)",
        ),
        ({"verdict": "win", "item": "1", "first": "a"}, "field 'second': found nothing, expected a verdict row"),
        (
            {**ROW, "strength": 3},
            "field 'strength': found a number (3), expected a verdict row (Input should be less than",
        ),
        (
            {**ROW, "strength": math.nan},
            "field 'strength': found a number (nan), expected a verdict row (Input should be a finite",
        ),
        ({**ROW, "scores": [1, math.inf]}, "field 'scores.1': found a number (inf), expected a verdict row"),
        ({**ROW, "lengths": [1]}, "field 'lengths.1': found nothing, expected a verdict row"),
        ({**ROW, "lengths": [1, -2]}, "field 'lengths.1': found a number (-2), expected a verdict row"),
        ({**ROW, "lengths": [1, math.nan]}, "field 'lengths.1': found a number (nan), expected a verdict row"),
        ({**ROW, "replies": [{"verdict": "win"}]}, "field 'replies.0.swapped': found nothing"),
        ({**ROW, "replies": [{**REPLY, "cost": math.nan}]}, "field 'replies.0.cost': found a number (nan)"),
        ({**ROW, "replies": 3}, "field 'replies': found a number (3), expected a verdict row"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line, message):
    path = tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(InputError) as caught:
        read_verdicts([path])
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_empty_and_undecodable_files(tmp_path):
    empty, broken = tmp_path / "empty.json", tmp_path / "broken.jsonl"
    empty.write_text("[]")
    broken.write_text('{"item": \n')
    with pytest.raises(InputError, match="found no verdicts"):
        read_verdicts([empty])
    with pytest.raises(InputError, match="broken JSON"):
        read_verdicts([broken])


def test_one_content_twice_is_refused(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROW) + ("\n" if name < "c" else "\n\n"))
    assert len(read_verdicts([tmp_path / "a.jsonl", tmp_path / "c.jsonl"])) == 2
    with pytest.raises(InputError, match=r"b\.jsonl: found the content of .*a\.jsonl again"):
        read_verdicts([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
