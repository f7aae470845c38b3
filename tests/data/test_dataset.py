"""Every known shape of row becomes the same preference; which rows are kept, dropped or rejected, and which stop a run.

Tests read the real data where it is available.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitlm.core.errors import InputError
from pitlm.core.nouns import Message, Preference, Prompt
from pitlm.data.dataset import PROMPTS_DIFFER, load_preferences, parse_preference
from pitlm.data.row_fields import RowError
from pitlm.data.shapes import RowDropped

HH_RLHF = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh-rlhf"
GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def jsonl(path: Path, *rows: Any) -> Path:
    """Write rows as jsonl; strings are written unchanged."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_rows_with_nothing_to_learn_are_counted_by_reason(tmp_path: Path) -> None:
    turn = "\n\nHuman: {}\n\nAssistant: {}"
    source = jsonl(
        tmp_path / "a.jsonl",
        GOOD,
        GOOD | {"rejected": "good"},
        GOOD | {"rejected": " good\n"},
        GOOD | {"chosen": "", "rejected": " "},
        GOOD | {"chosen": " "},
        GOOD | {"prompt": "\n"},
        {"chosen": turn.format("q", "good"), "rejected": turn.format("p", "bad")},
        {"chosen": turn.format("q", "good"), "rejected": turn.format("q", "bad")},
    )
    loaded = load_preferences(source)
    assert [(pair.prompt.text, pair.chosen, pair.rejected) for pair in loaded.preferences] == [("q", "good", "bad")] * 2
    assert loaded.dropped == {"equal responses": 3, "empty response": 1, "empty prompt": 1, "prompts differ": 1}
    assert (loaded.read, loaded.invalid) == (8, 0)


BROKEN = [
    ('{"prompt": "q", "chosen": ', None, "broken JSON", "one JSON object on the line"),
    ({"prompt": "q", "chosen": "good"}, "rejected", "no such field", "a string, or a list of messages"),
    (GOOD | {"chosen": 7}, "chosen", "a number (7)", "a string, or a list of messages"),
    (GOOD | {"prompt": {"text": "q"}}, "prompt", "an object with the fields text", "a string or a list of messages"),
    ({"chosen": "good", "rejected": "bad"}, "chosen", "no field 'prompt'", "a prompt field"),
    (
        GOOD | {"prompt": [{"role": "user", "content": "a"}] * 2},
        "prompt",
        "role 'user' in turn 2",
        "'assistant': the turns of a conversation alternate",
    ),
    (GOOD | {"chosen": [{"role": "user", "content": "a"}]}, "chosen", "ends on 'user'", "'assistant'"),
    ("[1, 2]", None, "a list of 2", "an object"),
]


@pytest.mark.parametrize(("row", "field", "found", "expected"), BROKEN)
def test_an_invalid_row_stops_with_one_message(
    tmp_path: Path, row: object, field: str | None, found: str, expected: str
) -> None:
    source = jsonl(tmp_path / "a.jsonl", GOOD, GOOD, row, GOOD)
    with pytest.raises(InputError) as caught:
        load_preferences(source)
    message = str(caught.value)
    assert message.startswith(f"{source}:3: ")
    before, after = message.split(", expected ", 1)
    assert found in before
    assert expected in after
    assert (f"field '{field}'" in before) == (field is not None)
    assert "\n" not in message


def test_messages_do_not_quote_the_data_at_length(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"chosen": "secret " * 1000, "rejected": "x"})
    with pytest.raises(InputError) as caught:
        load_preferences(source)
    assert len(str(caught.value).replace(str(source), "")) < 300


def test_skipped_rows_go_to_the_rejects(tmp_path: Path) -> None:
    rows = [row for row, *_ in BROKEN]
    source = jsonl(tmp_path / "a.jsonl", GOOD, *rows, GOOD)
    rejects = tmp_path / "new" / "rejects.jsonl"
    loaded = load_preferences(source, skip_invalid=True, rejects=rejects)
    assert (len(loaded.preferences), loaded.read, loaded.invalid) == (2, 10, 8)
    written = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [reject["line"] for reject in written] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert {reject["file"] for reject in written} == {str(source)}
    assert written[0]["row"] == rows[0]
    assert written[1]["row"] == rows[1]
    for reject, (_, field, found, _) in zip(written, BROKEN, strict=True):
        assert found in reject["reason"]
        assert (field or "") in reject["reason"]


def test_rejects_that_cannot_be_encoded_are_written_too(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", GOOD, '{"prompt": "q", "chosen": "\\ud800", "rejected": "b"}')
    load_preferences(source, skip_invalid=True, rejects=tmp_path / "rejects.jsonl")
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["row"]["chosen"] == "\ud800"


def test_a_failure_on_the_way_leaves_the_old_rejects(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    jsonl(tmp_path / "in" / "a.jsonl", "broken")
    (tmp_path / "in" / "b.parquet").write_text("damaged")
    rejects = tmp_path / "rejects.jsonl"
    rejects.write_text("old")
    with pytest.raises(InputError, match=r"b\.parquet"):
        load_preferences(tmp_path / "in", skip_invalid=True, rejects=rejects)
    assert rejects.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "rejects.jsonl"]


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        ([], "in 0 rows"),
        ([GOOD | {"chosen": "bad"}] * 3, "in 3 rows (3 dropped for equal responses)"),
        (["x", GOOD | {"chosen": ""}], "in 2 rows (1 dropped for empty response, 1 invalid)"),
    ],
)
def test_nothing_left_is_an_error_with_counts(tmp_path: Path, rows: list[Any], counts: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", *rows)
    with pytest.raises(InputError) as caught:
        load_preferences(source, skip_invalid=True)
    assert str(caught.value).startswith(f"{source}: found no preference to learn from {counts}, expected")


def test_limit_counts_what_is_kept_and_reads_no_further(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", GOOD, GOOD | {"chosen": "bad"}, GOOD, "broken")
    loaded = load_preferences(source, limit=2)
    assert (len(loaded.preferences), loaded.read) == (2, 3)


@pytest.mark.skipif(not HH_RLHF.is_dir(), reason="the HH-RLHF test splits are not at hand")
@pytest.mark.parametrize(
    ("file", "read", "dropped"),
    [
        ("harmless-base", 2312, {"empty response": 4, "prompts differ": 5}),
        ("helpful-base", 2354, {"empty response": 4, "equal responses": 2, "prompts differ": 9}),
        ("helpful-online", 1137, {"empty response": 3, "equal responses": 2, "prompts differ": 2}),
        ("helpful-rejection-sampled", 2749, {"equal responses": 32, "prompts differ": 3}),
    ],
)
def test_every_row_of_hh_rlhf_goes_through_by_default(file: str, read: int, dropped: dict[str, int]) -> None:
    loaded = load_preferences(HH_RLHF / f"{file}.jsonl.gz")
    assert (loaded.read, loaded.invalid) == (read, 0)
    assert loaded.dropped == dropped
    assert len(loaded.preferences) == read - sum(dropped.values())
    assert all(pair.prompt.messages[-1].role == "user" for pair in loaded.preferences)
    # no turn contains a marker, and only the speaker's own text was cut
    turns = [turn.content for pair in loaded.preferences for turn in pair.prompt.messages]
    assert not any("\n\nHuman:" in turn or "\n\nAssistant:" in turn for turn in turns)


@pytest.mark.skipif(not HH_RLHF.is_dir(), reason="the HH-RLHF test splits are not at hand")
def test_the_folder_of_hh_rlhf_is_the_sum_of_its_files() -> None:
    loaded = load_preferences(HH_RLHF)
    assert (loaded.read, len(loaded.preferences)) == (8552, 8486)
    assert loaded.dropped == {"equal responses": 36, "prompts differ": 19, "empty response": 11}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
ONE = Preference(Prompt((Message("user", "q"),)), "good", "bad")
TALK = Preference(
    Prompt((Message("user", "q"), Message("assistant", "a"), Message("user", "r"))),
    "good",
    "bad",
)
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, ONE),
        ({"prompt": [user("q")], "chosen": "good", "rejected": "bad"}, ONE),
        ({"prompt": [user("q")], "chosen": [bot("good")], "rejected": [bot("bad")]}, ONE),
        ({"prompt": "q", "chosen": [bot("good")], "rejected": [bot("bad")]}, ONE),
        ({"prompt": "q", "chosen": [user("q"), bot("good")], "rejected": [user("q"), bot("bad")]}, ONE),
        ({"prompt": [user("q")], "chosen": [user("q"), bot("good")], "rejected": [user("q"), bot("bad")]}, ONE),
        ({"chosen": [user("q"), bot("good")], "rejected": [user("q"), bot("bad")], "score": 3}, ONE),
        ({"prompt": [user("q"), bot("a"), user("r")], "chosen": "good", "rejected": [bot("bad")]}, TALK),
        ({"prompt": [user("q")], "chosen": [bot("a"), user("r"), bot("good")],
          "rejected": [bot("a"), user("r"), bot("bad")]}, TALK),
        ({"chosen": [user("q"), bot("a"), user("r"), bot("good")],
          "rejected": [user("q"), bot("a"), user("r"), bot("bad")]}, TALK),
        ({"prompt": "r", "chosen": [user("q"), bot("a"), user("r"), bot("good")],
          "rejected": [user("q"), bot("a"), user("r"), bot("bad")]}, TALK),
        ({"chosen": HH + " good", "rejected": HH + " bad"}, TALK),
        ({"prompt": HH, "chosen": " good", "rejected": " bad"}, TALK),
        ({"prompt": HH.lstrip(), "chosen": " good", "rejected": " bad"}, TALK),
        ({"prompt": HH, "chosen": HH + " good", "rejected": HH + " bad"}, TALK),
        ({"prompt": HH.removesuffix("\n\nAssistant:"), "chosen": "good", "rejected": "bad"}, TALK),
        ({"prompt": "r", "chosen": HH + " good", "rejected": HH + " bad"}, TALK),
    ],
)  # fmt: skip
def test_shapes(row: dict[str, Any], expected: Preference) -> None:
    assert parse_preference(row) == expected


def test_system_turns_are_kept_wherever_they_stand() -> None:
    expected = Prompt((Message("system", "Be brief."), Message("user", "q")))
    sides = {"chosen": [user("q"), bot("good")], "rejected": [user("q"), bot("bad")]}
    assert parse_preference({"prompt": [SYSTEM, user("q")], **sides}).prompt == expected
    told = {key: [SYSTEM, *turns] for key, turns in sides.items()}
    assert parse_preference({"prompt": "q", **told}).prompt == expected
    transcript = "Be brief.\n\nHuman: q\n\nAssistant: "
    assert parse_preference({"chosen": transcript + "good", "rejected": transcript + "bad"}).prompt == expected


def test_text_beside_a_prompt_is_kept_to_the_character() -> None:
    row = {"prompt": "  q\n", "chosen": "\n\nHuman: x ", "rejected": "  indented\n"}
    parsed = parse_preference(row)
    assert (parsed.prompt.text, parsed.chosen, parsed.rejected) == ("  q\n", "\n\nHuman: x ", "  indented\n")


@given(st.text(), st.text(), st.text(min_size=1))
def test_what_is_written_is_read_back(prompt: str, chosen: str, rejected: str) -> None:
    pair = Preference(Prompt((Message("user", prompt),)), chosen, rejected + HH)
    assert parse_preference(pair.as_dict()) == pair


def test_turns_in_a_row_by_one_speaker_become_one() -> None:
    before = "\n\nHuman: q\n\nAssistant: a\n\nAssistant: b\n\nHuman: r\n\nHuman: s\n\nAssistant:"
    parsed = parse_preference({"chosen": before + " good", "rejected": before + " bad"})
    assert [(m.role, m.content) for m in parsed.prompt.messages] == [
        ("user", "q"),
        ("assistant", "a\n\nb"),
        ("user", "r\n\ns"),
    ]
    assert (parsed.chosen, parsed.rejected) == ("good", "bad")


def test_a_shared_start_of_the_response_opens_both() -> None:
    before = "\n\nHuman: q\n\nAssistant: well\n\nAssistant:"
    parsed = parse_preference({"chosen": before + " good", "rejected": before + " bad"})
    assert parsed == Preference(Prompt((Message("user", "q"),)), "well\n\ngood", "well\n\nbad")


def test_empty_turns_of_a_transcript_are_kept() -> None:
    before = "\n\nHuman: q\n\nAssistant: \n\nHuman: r\n\nAssistant:"
    parsed = parse_preference({"chosen": before + " good", "rejected": before})
    assert parsed.prompt.messages[1] == Message("assistant", "")
    assert parsed.rejected == ""


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": HH + " good", "rejected": "\n\nHuman: other\n\nAssistant: bad"},
        {"chosen": HH + " good", "rejected": HH + " well\n\nAssistant: bad"},
        {"chosen": HH + " good", "rejected": HH + " bad\n\nHuman: next"},
        {"chosen": HH + " good\n\nHuman: next", "rejected": HH + " bad"},
        {"chosen": [user("q"), bot("good")], "rejected": [user("other"), bot("bad")]},
        {"chosen": [SYSTEM, user("q"), bot("good")], "rejected": [user("q"), bot("bad")]},
        {"prompt": "other", "chosen": [user("q"), bot("good")], "rejected": [user("q"), bot("bad")]},
        {"prompt": [user("other")], "chosen": [user("q"), bot("good")], "rejected": [user("q"), bot("bad")]},
    ],
)
def test_prompts_that_differ_are_dropped(row: dict[str, Any]) -> None:
    with pytest.raises(RowDropped) as caught:
        parse_preference(row)
    assert str(caught.value) == PROMPTS_DIFFER


@pytest.mark.parametrize(
    ("row", "field", "found", "expected"),
    [
        ([1], None, "a list of 1", "an object"),
        ("text", None, "a string ('text')", "an object"),
        (None, None, "null", "an object"),
        ({"prompt": "q", "chosen": "good"}, "rejected", "no such field (the row has prompt, chosen)", "a string, or a"),
        ({"prompt": "q", "rejected": "bad"}, "chosen", "no such field", "a string, or a list"),
        ({}, "chosen", "no such field (the row has none)", "a string, or a list"),
        (GOOD | {"prompt": None}, "prompt", "null", "a string or a list of messages"),
        (GOOD | {"prompt": 3}, "prompt", "a number (3)", "a string or a list of messages"),
        (GOOD | {"prompt": []}, "prompt", "an empty list", "a string or a list of messages"),
        (GOOD | {"prompt": ["q"]}, "prompt", "a string ('q') as message 1", "an object with role and content"),
        (GOOD | {"prompt": [{"from": "human", "text": "q"}]}, "prompt", "no role (the message has from", "user"),
        (GOOD | {"prompt": [{"role": "human", "content": "q"}]}, "prompt", "'human'", "one of system, user, assistant"),
        (GOOD | {"prompt": [{"role": "user", "content": None}]}, "prompt", "null as the content", "a string"),
        (GOOD | {"prompt": [{"role": "user"}]}, "prompt", "nothing as the content of message 1", "a string"),
        (GOOD | {"prompt": [user("a"), user("b")]}, "prompt", "role 'user' in turn 2", "'assistant': the turns"),
        (GOOD | {"prompt": [bot("a"), user("b")]}, "prompt", "role 'assistant' in turn 1", "'user'"),
        (GOOD | {"prompt": [user("a"), SYSTEM, user("b")]}, "prompt", "role 'system' in turn 2", "'assistant'"),
        (GOOD | {"prompt": [user("a"), bot("b")]}, "prompt", "ends on 'assistant'", "it to end on 'user'"),
        (GOOD | {"prompt": [SYSTEM]}, "prompt", "no user turn", "a conversation that ends with one"),
        (GOOD | {"prompt": HH + " said"}, "prompt", "ends on 'assistant'", "it to end on 'user'"),
        (GOOD | {"chosen": True}, "chosen", "a boolean (True)", "a string, or a list"),
        (GOOD | {"rejected": {"text": "x"}}, "rejected", "an object with the fields text", "a string, or a list"),
        (GOOD | {"rejected": "half \ud800"}, "rejected", "half a character", "valid Unicode"),
        (GOOD | {"chosen": [user("q")]}, "chosen", "a conversation that ends on 'user'", "'assistant'"),
        ({"chosen": [bot("good")], "rejected": [bot("bad")]}, "chosen", "a lone assistant turn", "turns before it"),
        ({"chosen": [user("q"), user("q"), bot("good")], "rejected": [user("q"), bot("bad")]}, "chosen",
         "role 'user' in turn 2", "alternate"),
        ({"chosen": "good", "rejected": "bad"}, "chosen", "a string ('good') and no field 'prompt'", "a prompt field"),
        ({"chosen": HH + " good\n\nHuman: x", "rejected": HH + " bad\n\nHuman: x"}, "chosen",
         "a transcript that ends on 'Human'", "'Assistant'"),
        ({"chosen": "\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "rejected":
          "\n\nAssistant: a\n\nHuman: b\n\nAssistant: d"}, "chosen", "role 'assistant' in turn 1", "'user'"),
    ],
)  # fmt: skip
def test_broken_rows_say_what_is_wrong(row: object, field: str | None, found: str, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_preference(row)
    assert caught.value.field == field
    assert found in caught.value.found
    assert expected in caught.value.expected
