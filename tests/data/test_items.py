"""Rows with a prompt and a response: the shapes in use, and what `pit improve` writes of them."""

from __future__ import annotations

import json

import pytest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Round, StopReason, Trace
from pitlm.data.items import count_rows, read_items


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
    assert items[1].improved(trace)["output"] == "c"  # the fields that AlpacaEval reads
    assert "prompt" not in items[1].improved(trace)
    path.write_text("")
    with pytest.raises(InputError, match="found no rows"):
        list(read_items(path))
