"""Data sets of every known shape are read as what they say, and nothing that carries meaning is lost without a word."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitlm.core.errors import InputError
from pitlm.core.nouns import NOT_READ, Message, Prompt
from pitlm.data.dataset import Loaded, load_preferences
from pitlm.data.items import read_answers, read_comparisons
from pitlm.data.row_fields import NOT_READ_IN_ROWS
from pitlm.data.shapes import MOST_PAIRS

USER, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "good"},
    {"role": "assistant", "content": "bad"},
)
PAIR = ("q", "good", "bad")


def read(tmp_path: Path, *rows: Any, **options: Any) -> Loaded:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_preferences(path, **options)


def texts(loaded: Loaded) -> list[tuple[str, str, str]]:
    return [(pair.prompt.text, pair.chosen, pair.rejected) for pair in loaded.preferences]


SHAPES = {
    "index": {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1},
    "index as text": {"prompt": "q", "response_0": "good", "response_1": "bad", "better_response_id": "0"},
    "SHP": {"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1},
    "SHP, the other": {"history": "q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0},
    "arena": {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "model_b"},
    "ranks": {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [{"answer": "bad", "rank": 2.0}, {"answer": "good", "rank": 1.0}],
    },
    "scores": {
        "instruction": "q",
        "completions": [{"response": "bad", "overall_score": 3}, {"response": "good", "overall_score": 7.5}],
    },
    "from and value": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "JudgeBench": {"question": "q", "response_A": "bad", "response_B": "good", "label": "B>A", "pair_id": "1"},
    "LLMBar": {"input": "q", "output_1": "good", "output_2": "bad", "label": 1},
    "PandaLM": {
        **{"instruction": "q", "input": "", "response1": "bad", "response2": "good"},
        **{"annotator1": 2, "annotator2": 0, "annotator3": 2},
    },
    "RewardBench": {"prompt": "q", "chosen": "good", "chosen_model": "a", "rejected": "bad", "rejected_model": "b"},
    "lone messages": {"prompt": "q", "chosen": GOOD, "rejected": BAD},
    "JSON of messages": {"prompt": "q", "chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])},
    "JSON of the prompt": {"prompt": json.dumps([USER]), "chosen": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_the_same_pair(name, tmp_path):
    assert texts(read(tmp_path, SHAPES[name])) == [PAIR]


def test_ranked_answers_give_all_pairs_of_different_rank(tmp_path):
    ranked = [{"answer": name, "rank": rank} for name, rank in (("a", 1), ("b", 2), ("c", 2), ("d", 3))]
    loaded = read(tmp_path, {"prompt": "q", "answers": ranked})
    assert [pair[1:] for pair in texts(loaded)] == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    assert (loaded.read, set(loaded.origins)) == (5, {(f"{tmp_path / 'rows.jsonl'}:1", None)})


def test_thumbs_become_pairs_within_a_prompt(tmp_path):
    rated = [("q", "good", True), ("p", "lone", True), ("q", "bad", False), ("q", "worse", 0), ("q", "fine", "True")]
    loaded = read(tmp_path, *({"prompt": x, "completion": y, "label": label} for x, y, label in rated))
    assert texts(loaded) == [("q", w, l) for w in ("good", "fine") for l in ("bad", "worse")]
    assert (loaded.read, loaded.dropped) == (5, {"prompts with one label": 1})


@given(up=st.integers(1, 400), down=st.integers(1, 400))
def test_many_thumbs_make_few_pairs_and_use_each_answer(up, down):
    with TemporaryDirectory() as folder:
        rated = [("good", True)] * up + [("bad", False)] * down
        rows = [{"prompt": "q", "completion": f"{y} {n}", "label": label} for n, (y, label) in enumerate(rated)]
        pairs = texts(read(Path(folder), *rows))
    assert len(set(pairs)) == len(pairs) == (up * down if up * down <= MOST_PAIRS else max(up, down))
    assert len({y for _, *answers in pairs for y in answers}) == up + down
    assert all(chosen.startswith("good") and rejected.startswith("bad") for _, chosen, rejected in pairs)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=120))
def test_a_long_list_makes_few_pairs_of_different_rank(ranks):
    answers = [{"answer": f"{n} of {rank}", "rank": rank} for n, rank in enumerate(ranks)]
    count = len(ranks) * (len(ranks) - 1) // 2
    with TemporaryDirectory() as folder:
        try:
            pairs = texts(read(Path(folder), {"prompt": "q", "answers": answers}))
        except InputError:
            pairs = []
    places = [tuple(int(y.split(" of ")[1]) for y in pair[1:]) for pair in pairs]
    assert all(chosen < rejected for chosen, rejected in places)
    if count <= MOST_PAIRS:
        assert len(pairs) == sum(a != b for n, a in enumerate(ranks) for b in ranks[:n])
    else:
        assert len(pairs) <= len(ranks)
        if len(set(ranks)) == len(ranks):
            assert len({y for _, *both in pairs for y in both}) == len(ranks)


def test_a_million_thumbs_of_one_prompt_are_read_at_once(tmp_path):
    rows = ({"prompt": "q", "completion": f"answer {n}", "label": n % 2 == 0} for n in range(4000))
    assert len(texts(read(tmp_path, *rows))) == 2000


def test_one_system_text_is_not_anothers_prompt(tmp_path):
    rows = [
        {"system": system, "prompt": "q", "completion": f"{system} {label}", "label": label}
        for system in ("a", "b")
        for label in (True, False)
    ]
    assert [(w.split()[0], l.split()[0]) for _, w, l in texts(read(tmp_path, *rows))] == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize("votes", [(0, 0, 2), (0, 1, 2), (0, 0, 0)])
def test_annotators_without_a_majority_for_an_answer_are_a_tie(tmp_path, votes):
    row = {"instruction": "q", "response1": "a", "response2": "b"}
    rows = [
        {**row, **dict(zip(("annotator1", "annotator2", "annotator3"), v, strict=True))} for v in (votes, (1, 1, 0))
    ]
    loaded = read(tmp_path, *rows)
    assert (texts(loaded), loaded.dropped) == ([("q", "a", "b")], {"ties": 1})


def test_columns_of_other_names_are_named(tmp_path):
    rows = [{"question": "q", "best": "good", "worst": "bad", "prompt": "not this"}]
    columns = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    assert texts(read(tmp_path, *rows, columns=columns)) == [PAIR]
    with pytest.raises(InputError, match=r"rows\.jsonl:1: field 'chosen': found no column 'bst' .*question, best"):
        read(tmp_path, *rows, columns={**columns, "chosen": "bst"})


def test_ties_are_counted(tmp_path):
    tie = {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "tie (bothbad)"}
    equal = {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}
    assert read(tmp_path, SHAPES["index"], tie, equal).dropped == {"ties": 1, "equal ranks": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**SHAPES["index"], "better_response_id": 2}, "field 'better_response_id': found a number (2), expected 0 or"),
        ({"prompt": "q", "answers": ["a", "b"]}, "field 'answers': found a string ('a') as answer 1"),
        ({"prompt": "q", "answers": [{"answer": "a"}]}, "found the fields answer in answer 1, expected a text"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": "x"}] * 2}, "as the rank of answer 1, expected a number"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": float("nan")}] * 2}, "expected a number"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": float("inf")}] * 2}, "expected a number"),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, "field 'label': found a string ('maybe')"),
        ({"prompt": "q", "chosen": "[{'role': broken", "rejected": "b"}, "field 'chosen': found messages written as"),
        ({"prompt": [{"from": "tool", "value": "q"}], "chosen": "a", "rejected": "b"}, "a string ('tool') as the role"),
        ({"prompt": "q", "system": 3, "chosen": "a", "rejected": "b"}, "field 'system': found a number (3)"),
        (
            {"prompt": [{"role": "system", "content": "a"}, USER], "system": "b", "chosen": "a", "rejected": "b"},
            "field 'system': found a string ('b'), expected the system turn of the prompt",
        ),
        ({"instruction": "q", "input": 3, "chosen": "a", "rejected": "b"}, "field 'input': found a number (3)"),
    ],
)
def test_a_fault_is_named_by_line_and_field_and_can_be_skipped(row, message, tmp_path):
    with pytest.raises(InputError) as error:
        read(tmp_path, SHAPES["index"], row)
    assert f"{tmp_path / 'rows.jsonl'}:2: " in str(error.value)
    assert message in str(error.value)
    loaded = read(tmp_path, SHAPES["index"], row, skip_invalid=True)
    assert (texts(loaded), loaded.invalid) == ([PAIR], 1)


@pytest.mark.parametrize("name", NOT_READ)
def test_a_message_that_says_more_than_its_text_is_refused(name, tmp_path):
    rows = [
        {"prompt": [{**USER, name: ["x"]}], "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": [{**GOOD, name: {"x": 1}}], "rejected": [BAD]},
    ]
    for row in rows:
        with pytest.raises(InputError, match=f"rows.jsonl:1: field '.*': found '{name}' in message 1"):
            read(tmp_path, row)
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"prompt": [{**USER, name: "x"}], "response": "a"}) + "\n")
    with pytest.raises(InputError, match=f"'{name}' in message 1"):
        read_answers(path)
    for empty in (None, [], "", {}):
        rows[1]["chosen"] = [{**GOOD, name: empty}]
        assert texts(read(tmp_path, rows[1])) == [PAIR]


@pytest.mark.parametrize("name", NOT_READ_IN_ROWS)
def test_a_row_whose_prompt_is_more_than_text_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=f"field '{name}': found a list of 1, expected nothing"):
        read(tmp_path, {**SHAPES["index"], name: ["x"]})
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"prompt": "q", "response": "a", name: ["x"]}) + "\n")
    with pytest.raises(InputError, match=f"field '{name}'"):
        read_answers(path)


def test_a_system_column_is_the_system_turn(tmp_path):
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    empty, pirate = read(tmp_path, {**pair, "system": ""}, {**pair, "system": "Be a pirate."}).preferences
    assert empty.prompt == Prompt.of("q")
    assert pirate.prompt.messages == (Message("system", "Be a pirate."), Message("user", "q"))
    transcript = {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    assert read(tmp_path, {**transcript, "system": "Be a pirate."}).preferences[0].prompt == pirate.prompt


def test_the_input_of_an_instruction_belongs_to_the_prompt(tmp_path):
    def file(name: str, *rows: tuple[str, str, str]) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps([{"instruction": i, "input": more, "output": y} for i, more, y in rows]))
        return path

    first = file("a.json", ("Sum up.", "one", "1"), ("Sum up.", "two", "2"), ("Name it.", "", "x"))
    second = file("b.json", ("Sum up.", "two", "II"), ("Sum up.", "one", "I"), ("Name it.", "", "X"))
    pairs = read_comparisons(first, second)
    assert [(c.prompt.text, c.first, c.second) for c in pairs] == [
        ("Sum up.\n\none", "1", "I"),
        ("Sum up.\n\ntwo", "2", "II"),
        ("Name it.", "x", "X"),
    ]
    row = {"instruction": "Sum up.", "input": "one", "chosen": "good", "rejected": "bad"}
    assert texts(read(tmp_path, row)) == [("Sum up.\n\none", "good", "bad")]


CONTENT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(CONTENT, CONTENT)
def test_printed_messages_are_the_messages(chosen, rejected):
    """As JSON, as Python prints a list, and as numpy prints an array: without commas between the messages."""
    from pitlm.data.row_fields import decoded

    messages = [{"role": "user", "content": chosen}, {"role": "assistant", "content": rejected}]
    for text in (json.dumps(messages), repr(messages), "[" + "\n ".join(map(repr, messages)) + "]"):
        assert decoded("chosen", text) == messages


def test_printed_messages_in_csv_are_read(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["prompt", "chosen", "rejected"])
        out.writerow(["q", f"[{USER}\n {GOOD}]", f"[{USER}\n {BAD}]"])
    assert texts(load_preferences(tmp_path / "a.csv")) == [PAIR]


def test_scores_that_contradict_the_labels_are_counted(tmp_path):
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    scores = [(3, 7), (7, 3), ("2.5", "9"), (4, 4), (None, 5)]
    rows = [{**pair, "score_chosen": w, "score_rejected": l} for w, l in scores]
    assert read(tmp_path, *rows, {**pair, "chosen-rating": 1, "rejected-rating": 2}).contradicted == 3


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(3)]
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=made, test=made).save_to_disk(str(tmp_path / "two"))
    assert len(load_preferences(tmp_path / "one").preferences) == 3
    assert len(load_preferences(tmp_path / "two").preferences) == 6
    damaged = next((tmp_path / "one").glob("*.arrow"))
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot load a file of Arrow data"):
        load_preferences(tmp_path / "one")
