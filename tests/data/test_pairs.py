"""Every known shape of row becomes the same preference; every broken row gives a clear message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitlm.core.nouns import Message, Preference, Prompt
from pitlm.data.pairs import PROMPTS_DIFFER, RowDropped, parse_preference
from pitlm.data.row_fields import RowError, describe


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
    assert caught.value.reason == PROMPTS_DIFFER


GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


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
        (GOOD | {"prompt": [{"from": "human", "value": "q"}]}, "prompt", "no role (the message has from", "user"),
        (GOOD | {"prompt": [{"role": "human", "content": "q"}]}, "prompt", "'human'", "one of system, user, assistant"),
        (GOOD | {"prompt": [{"role": "user", "content": None}]}, "prompt", "null as the content", "a string"),
        (GOOD | {"prompt": [{"role": "user"}]}, "prompt", "nothing as the content of message 1", "a string"),
        (GOOD | {"prompt": [user("a"), user("b")]}, "prompt", "role 'user' in turn 2, which does not", "'assistant'"),
        (GOOD | {"prompt": [bot("a"), user("b")]}, "prompt", "role 'assistant' in turn 1", "'user'"),
        (GOOD | {"prompt": [user("a"), SYSTEM, user("b")]}, "prompt", "role 'system' in turn 2", "'assistant'"),
        (GOOD | {"prompt": [user("a"), bot("b")]}, "prompt", "'assistant' comes last", "'user' before the response"),
        (GOOD | {"prompt": [SYSTEM]}, "prompt", "'system' comes last", "'user' before the response"),
        (GOOD | {"prompt": HH + " said"}, "prompt", "'assistant' comes last", "'user' before the response"),
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


@pytest.mark.parametrize(
    "value", ["x" * 10_000, 10**4000, {"k" * 5000: 1}, {str(k): k for k in range(999)}, ["x"] * 999]
)
def test_errors_never_quote_whole_texts(value: object) -> None:
    assert len(describe(value)) < 150
