"""Rows with a prompt and an answer: the shapes in use, what `pit improve` writes of them, and the pairing of two files."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Round, StopReason, Trace
from pitlm.data.items import count_rows, read_answers, read_comparisons, read_items


def test_rows_of_every_shape_are_read_one_by_one(tmp_path):
    path = tmp_path / "in.jsonl"
    given = [
        {"prompt": "a", "response": "b"},
        {"messages": [{"role": "user", "content": "a"}]},
        {"instruction": "a", "output": "b", "generator": "m"},
        {"prompt": "a", "messages": "left alone"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in given) + "\n{broken\n")
    stream = read_items(path)
    assert next(stream).number == 0  # before the job reaches the broken line
    items = [next(stream) for _ in range(3)]
    assert [(one.prompt.text, one.response) for one in items] == [("a", None), ("a", "b"), ("a", None)]
    [bad] = stream
    assert (bad.number, bad.where, bad.row) == (4, f"{path}:6", "{broken")
    assert count_rows(path) == 5
    trace = Trace(items[1].prompt, "b", (Round("c", 1.0, True),), StopReason.ROUNDS)
    made = items[1].improved(trace)
    assert made["output"] == "c"  # the field that AlpacaEval reads
    assert {**made, "output": "b", "pit": None} == {**items[1].row, "pit": None}
    assert (made["pit"]["final"], made["pit"]["original"], "prompt" in made["pit"]) == ("c", "b", False)
    path.write_text("")
    with pytest.raises(InputError, match="found no rows"):
        list(read_items(path))


ALPACA = [
    {"dataset": "helpful_base", "instruction": "one?", "output": "1", "generator": "small", "datasplit": "eval"},
    {
        "dataset": "koala",
        "instruction": "two?",
        "output": "",
        "generator": "small",
        "datasplit": "eval",
        "odd": [1, None],
    },
]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_model_outputs_are_read_with_every_field(tmp_path):
    (tmp_path / "in.json").write_text(json.dumps(ALPACA))
    system, answers = read_answers(tmp_path / "in.json")
    assert system == "small"
    assert [(a.prompt, a.response) for a in answers] == [(Prompt.of("one?"), "1"), (Prompt.of("two?"), "")]
    assert [a.row for a in answers] == ALPACA


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "a"},
        {"messages": [{"role": "user", "content": "q"}], "output": "a"},
        {"instruction": "q", "output": "a", "input": ""},
        {"prompt": "q", "response": "bad", "pit": {"original": "bad", "final": "a"}},  # as `pit improve` writes it
        {"prompt": "q", "response": "a", "final": True, "original": "v1", "rounds": "two"},  # the user's own columns
    ],
)
def test_every_shape_in_use_is_read(row, tmp_path):
    system, [answer] = read_answers(lines(tmp_path / "mine.jsonl", row))
    assert (system, answer.prompt, answer.response) == ("mine", Prompt.of("q"), "a")


def test_csv_and_parquet_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,response,id\n"q, q",yes,7\n')
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": "q, q", "response": "no", "id": 7}]), tmp_path / "b.parquet"
    )
    (pair,) = read_comparisons(tmp_path / "a.csv", tmp_path / "b.parquet")
    assert (pair.first, pair.second, pair.item, pair.systems) == ("yes", "no", "7", ("a", "b"))


def test_pairs_are_found_by_prompt_and_duplicates_in_order(tmp_path):
    first = lines(
        tmp_path / "f.jsonl", *({"prompt": p, "response": r} for p, r in [("x", "x1"), ("y", "y1"), ("x", "x2")])
    )
    second = lines(
        tmp_path / "s.jsonl", *({"prompt": p, "response": r} for p, r in [("y", "Y"), ("x", "X1"), ("x", "X2")])
    )
    pairs = read_comparisons(first, second)
    assert [(c.prompt.text, c.first, c.second) for c in pairs] == [
        ("x", "x1", "X1"),
        ("y", "y1", "Y"),
        ("x", "x2", "X2"),
    ]
    key = Prompt.of("x").key
    assert [pairs[0].item, pairs[2].item] == [key, f"{key}#2"]


def test_ids_count_only_where_every_row_has_one(tmp_path):
    first = lines(
        tmp_path / "f.jsonl", {"id": "b", "prompt": "x", "response": "1"}, {"id": 2, "prompt": "x", "response": "2"}
    )
    second = lines(
        tmp_path / "s.jsonl", {"id": "2", "prompt": "x", "response": "II"}, {"id": "b", "prompt": "x", "response": "I"}
    )
    assert [(c.item, c.first, c.second) for c in read_comparisons(first, second)] == [("b", "1", "I"), ("2", "2", "II")]
    lines(second, {"prompt": "x", "response": "first"}, {"id": "b", "prompt": "x", "response": "second"})
    assert [c.second for c in read_comparisons(first, second)] == ["first", "second"]


def test_swapping_the_files_swaps_the_comparisons(tmp_path):
    first = lines(tmp_path / "f.jsonl", *({"prompt": p, "response": r} for p, r in [("x", "1"), ("y", "2")]))
    second = lines(tmp_path / "s.jsonl", *({"prompt": p, "response": r} for p, r in [("x", "I"), ("y", "II")]))
    assert [c.swap() for c in read_comparisons(first, second)] == read_comparisons(second, first)


def test_a_mismatch_says_how_many_and_shows_one(tmp_path):
    first = lines(tmp_path / "f.jsonl", *({"prompt": p, "response": "r"} for p in ("a", "b", "c")))
    second = lines(tmp_path / "s.jsonl", {"prompt": "a", "response": "r"})
    with pytest.raises(InputError, match=r"found 2 of 3 answers with no counterpart in .*s\.jsonl.*f\.jsonl:2 \(b\)"):
        read_comparisons(first, second)
    with pytest.raises(InputError, match=r"found 2 of 3 answers with no counterpart"):
        read_comparisons(second, first)
    first = lines(tmp_path / "f.jsonl", {"id": 1, "prompt": "a", "response": "r"})
    second = lines(tmp_path / "s.jsonl", {"id": 1, "prompt": "b", "response": "r"})
    with pytest.raises(InputError, match=r"another prompt than .*s\.jsonl:1 has under the same id '1'"):
        read_comparisons(first, second)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "q"}', ":1: found the fields prompt, expected 'response' or 'output'"),
        ('{"response": "q"}', "expected 'prompt' or 'messages' or 'instruction'"),
        ('{"prompt": "q", "response": 3}', "field 'response': found a number (3), expected a string"),
        (
            '{"prompt": [], "response": "a"}',
            "field 'prompt': found an empty list, expected a string or a list of messages",
        ),
        ('{"prompt": "q", "response": "\\ud800"}', "field 'response': found half a character"),
        ('{"prompt": "q", "response": "a", "generator": "\\ud800"}', "field 'generator': found half a character"),
        ('["q"]', "found a list of 1, expected an object"),
        ("{", "broken JSON"),
        ("", "found no rows"),
    ],
)
def test_bad_rows_are_named(row, words, tmp_path):
    (tmp_path / "bad.jsonl").write_text(row + "\n")
    with pytest.raises(InputError) as error:
        read_answers(tmp_path / "bad.jsonl")
    assert words in str(error.value)
    assert "bad.jsonl" in str(error.value)


def test_one_file_holds_one_system_and_two_files_two_names(tmp_path):
    rows = [{"prompt": "q", "response": "a", "generator": name} for name in ("m", "n")]
    with pytest.raises(InputError, match="field 'generator': found m, n"):
        read_answers(lines(tmp_path / "both.jsonl", *rows))
    first, second = lines(tmp_path / "f.jsonl", rows[0]), lines(tmp_path / "s.jsonl", rows[0])
    assert read_comparisons(first, second)[0].systems == ("f", "s")
    assert len(set(read_comparisons(first, first)[0].systems)) == 2


def test_an_id_that_looks_like_a_repetition_takes_no_place_of_another_row(tmp_path):
    rows = [{"id": name, "prompt": "a", "response": str(n)} for n, name in enumerate(["x", "x", "x#2"])]
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_comparisons(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert [pair.first for pair in pairs] == ["0", "1", "2"]
    assert len({pair.item for pair in pairs}) == 3
