"""The nouns: what they accept, what they refuse, and what must never change."""

from __future__ import annotations

import re

import pytest

from pitlm.core.errors import InputError, describe
from pitlm.core.nouns import Message, Prompt, Round, StopReason, Trace
from pitlm.core.verdicts import Comparison, Verdict

USER, ANSWER, SYSTEM = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "system", "content": "s"},
)


@pytest.mark.parametrize(
    ("value", "roles"),
    [
        ([{"role": "developer", "content": "s"}, USER], ["system", "user"]),
        ("q", ["user"]),
        ([USER], ["user"]),
        ([Message("user", "q")], ["user"]),
        ((SYSTEM, USER), ["system", "user"]),
        ([SYSTEM, USER, ANSWER, USER], ["system", "user", "assistant", "user"]),
        ([USER, ANSWER, {**USER, "name": "ignored"}], ["user", "assistant", "user"]),
    ],
)
def test_a_prompt_is_made_of_what_users_have(value, roles):
    prompt = Prompt.of(value)
    assert [message.role for message in prompt.messages] == roles
    assert prompt.text == "q"
    assert Prompt.of(prompt) is prompt
    assert Prompt.of(prompt.as_messages()) == prompt


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "found no user turn"),
        ([SYSTEM], "found no user turn"),
        ([ANSWER], "found role 'assistant' in turn 1, expected 'user'"),
        ([USER, USER], "found role 'user' in turn 2, expected 'assistant'"),
        ([USER, SYSTEM], "found role 'system' in turn 2"),
        ([SYSTEM, SYSTEM, USER], "found role 'system' in turn 2, expected 'user'"),
        ([USER, ANSWER], "ends on 'assistant', expected it to end on 'user'"),
        (
            [{"role": "human", "content": "q"}],
            "found a string ('human') as the role of message 1, expected one of system",
        ),
        ([USER, {"role": "assistant"}], "found nothing as the content of message 2, expected a string"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
            "found a list of 1 as the content of message 1",
        ),
        (["q"], "found a string ('q') as message 1, expected an object with role and content"),
        (7, "found a number (7), expected a string or a list of messages"),
        (None, "found null, expected"),
        ({"role": "user", "content": "q"}, "found an object with the fields role, content, expected"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_reason(value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Prompt.of(value)


@pytest.mark.parametrize(
    "value", ["x" * 10_000, 10**4000, {"k" * 5000: 1}, {str(k): k for k in range(999)}, ["x"] * 999]
)
def test_errors_never_quote_whole_texts(value: object) -> None:
    assert len(describe(value)) < 150


def test_the_key_of_a_prompt_never_changes():
    # By hand, because folds of old runs depend on the key: the messages as one line of UTF-8 JSON, through sha256sum.
    prompt = Prompt.of("How much is the lamp? é")
    assert prompt.key == "4bb5c00676ae9c36"


def test_the_key_sees_the_whole_conversation():
    prompts = [Prompt.of("q"), Prompt.of([SYSTEM, USER]), Prompt.of([USER, ANSWER, USER]), Prompt.of("q ")]
    assert len({prompt.key for prompt in prompts}) == 4
    assert len(prompts[0].key) == 16


def test_swapping_a_verdict_twice_gives_it_back():
    assert [verdict.swap() for verdict in Verdict] == [
        Verdict.LOSS,
        Verdict.TIE,
        Verdict.WIN,
        Verdict.INCONSISTENT,
        Verdict.UNPARSABLE,
    ]
    assert all(verdict.swap().swap() is verdict for verdict in Verdict)


def test_swapping_a_comparison_exchanges_the_responses_and_their_systems_only():
    comparison = Comparison(Prompt.of("q"), "a", "b", "1", ("pit", "original"))
    assert comparison.swap() == Comparison(Prompt.of("q"), "b", "a", "1", ("original", "pit"))
    assert comparison.swap().swap() == comparison


def test_a_trace_tells_what_was_kept():
    rounds = (Round("b", 0.5, True), Round("c", 0.25, True), Round("d", -1.0, False))
    trace = Trace(Prompt.of("q"), "a", rounds, StopReason.ACCEPTED_NONE, generated_tokens=9, prompt_tokens=30)
    assert trace.responses == ("a", "b", "c")
    assert trace.final == "c"
    assert trace.gaps == (0.5, 0.25, -1.0)
    row = trace.as_dict()
    assert (row["original"], row["final"], row["stop_reason"], row["generated_tokens"]) == (
        "a",
        "c",
        "accepted-none",
        9,
    )
    assert [r["accepted"] for r in row["rounds"]] == [True, True, False]


def test_a_trace_without_an_accepted_round_ends_where_it_began():
    trace = Trace(Prompt.of("q"), "a", (Round("b", -0.5, False),), StopReason.ACCEPTED_NONE)
    assert (trace.final, trace.responses) == ("a", ("a",))


def test_nouns_cannot_be_changed():
    with pytest.raises(AttributeError):
        Prompt.of("q").messages = ()
