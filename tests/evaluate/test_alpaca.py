"""AlpacaEval's figures from its published leaderboard, its file format, and files that are broken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitlm.core.errors import InputError
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.alpaca import Annotation, annotation_as_dict, annotation_from_dict, leaderboard
from pitlm.evaluate.verdict_files import read_verdicts, write_annotations

# alpaca_eval_gpt4_leaderboard.csv of tatsu-lab/alpaca_eval: win_rate, standard_error, n_wins, n_wins_base, n_draws, n_total.
# Preferences of that annotator are 1, 1.5 and 2 only, so the counts are all that the figures depend on.
PUBLISHED = {
    "gpt4_turbo": (97.69900497512438, 0.5104849118311993, 783, 16, 5, 804),
    "pairrm-tulu-2-70b": (95.39800995024876, 0.7394089832625841, 767, 37, 0, 804),
    "Yi-34B-Chat": (94.08468244084682, 0.8260116588728516, 754, 46, 3, 803),
    "phi-2": (30.663329161451813, 1.6056202651534168, 234, 543, 22, 799),
    "text_davinci_003": (50.0, 0.0, 0, 0, 805, 805),
}
# weighted_alpaca_eval_gpt4_turbo_leaderboard.csv: n_wins, n_draws, n_total and discrete_win_rate.
DISCRETE = {
    "gpt-4o-2024-05-13": (429, 7, 805, 53.72670807453416),
    "aligner-2b_qwen1.5-72b-chat": (180, 152, 805, 31.801242236024844),
    "Meta-Llama-3.1-8B-Instruct-Turbo": (168, 2, 802, 21.07231920199501),
}


def rows_of(preferences) -> list[VerdictRow]:
    made = [annotation_from_dict({"preference": p, "instruction": f"{n}"}, "f", n) for n, p in enumerate(preferences)]
    return [annotation.row for annotation in made]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_leaderboard(name):
    win_rate, error, wins, losses, draws, total = PUBLISHED[name]
    found = leaderboard(rows_of([2.0] * wins + [1] * losses + [1.5] * draws + [None] * (805 - total)))
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (wins, losses, draws, total)
    assert found.win_rate == pytest.approx(win_rate, rel=1e-13)
    assert found.standard_error == pytest.approx(error, rel=1e-12)
    assert found.discrete_win_rate == pytest.approx(win_rate, rel=1e-13)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_published_discrete_win_rate(name):
    wins, draws, total, published = DISCRETE[name]
    preferences = [1.51] * wins + [1.5] * draws + [1.4999] * (total - wins - draws)
    assert leaderboard(rows_of(preferences)).discrete_win_rate == pytest.approx(published, rel=1e-13)


@given(st.lists(st.one_of(st.none(), st.floats(1, 2), st.sampled_from([0, 1, 1.5, 2])), max_size=40))
def test_continuous_preferences_as_pandas_computes_them(preferences):
    """The definitions, in pandas, which AlpacaEval computes with."""
    series = pd.Series(preferences, dtype=float).replace({0.0: 1.5}).dropna() - 1
    found = leaderboard(rows_of(preferences))
    assert found.win_rate == pytest.approx(series.mean() * 100, rel=1e-12, nan_ok=True)
    assert found.standard_error == pytest.approx(series.sem() * 100, rel=1e-9, abs=1e-9, nan_ok=True)
    assert (found.n_wins, found.n_wins_base) == ((series > 0.5).sum(), (series < 0.5).sum())
    assert (found.n_draws, found.n_total) == ((series == 0.5).sum(), len(series))
    rounded = np.where(series == 0.5, 0.5, (series > 0.5).astype(float))
    assert found.discrete_win_rate == pytest.approx(rounded.mean() * 100 if len(series) else math.nan, nan_ok=True)


def test_rows_without_strength_count_by_their_verdict():
    verdicts = [Verdict.WIN, Verdict.WIN, Verdict.LOSS, Verdict.TIE, Verdict.INCONSISTENT, Verdict.UNPARSABLE]
    found = leaderboard([VerdictRow(f"{n}", "a", "b", verdict) for n, verdict in enumerate(verdicts)])
    assert (found.win_rate, found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (60, 2, 1, 2, 5)
    # By hand: deviations 0.4, 0.4, -0.6, -0.1, -0.1, squares sum to 0.7; the root of 0.7 / 4 / 5.
    assert found.standard_error == pytest.approx(100 * math.sqrt(0.7 / 4 / 5))


# As AlpacaEval writes it: no spaces after colons, slashes escaped, fields of its own.
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
    row = annotation_from_dict({"preference": preference}, "f", 1).row
    assert annotation_as_dict(Annotation(row))["preference"] == preference


def test_the_item_is_the_instruction_in_every_file():
    one, two, other = (
        annotation_from_dict({"preference": 2, "instruction": text, "generator_2": name}, "f", n).row
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
    assert annotation_from_dict({"preference": preference}, "f", 1).row.verdict == verdict


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
    assert annotation_from_dict(written, "f", 1).row.lengths == (1, 4)


ROW = {"item": "1", "first": "a", "second": "b", "verdict": "win"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"preference": 2.5}, "field 'preference': found 2.5, expected a number in [1, 2] or null"),
        ({"preference": "2"}, "field 'preference': found '2', expected a number in [1, 2] or null"),
        ({"preference": True}, "field 'preference': found True"),
        ({"preference": 2, "output_1": 5}, "field 'output_1': found 5, expected text"),
        (
            {"preference": 2, "generator_1": "x", "generator_2": "x"},
            "found 'x' compared with itself, expected two systems",
        ),
        ({"instruction": "q"}, "found an object with the fields instruction, expected a verdict row"),
        ([1], "found [1], expected a verdict row"),
        ({**ROW, "verdict": "victory"}, "found a broken row ('victory' is not a valid Verdict)"),
        ({**ROW, "colour": 1}, "found a broken row (unknown fields colour)"),
        ({**ROW, "item": 7}, "field 'item': found 7, expected text"),
        ({"verdict": "win", "item": "1", "first": "a"}, "field 'second': found nothing, expected text"),
        ({**ROW, "strength": 3}, "field 'strength': found 3, expected a number in [0, 1]"),
        ({**ROW, "lengths": [1]}, "field 'lengths': found (1,), expected two whole numbers"),
        ({**ROW, "replies": [{"verdict": "win"}]}, "found a broken row"),
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
