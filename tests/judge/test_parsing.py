"""Only a reply's last line is its verdict."""

import pytest

from pitlm.core.verdicts import Verdict
from pitlm.judge.parsing import parse_verdict

W, T, L, I, U = Verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Verdict: A", W),
        ("Both are fine.\n\nVerdict: B", L),
        ("Verdict: tie", T),
        ("verdict:a\n\n  \n", W),
        ("**Verdict: B**", L),
        ("Verdict: **Tie**.", T),
        ("### Verdict: [[A]]", W),
        ("`Verdict: B`\r\n", L),
        ("Verdict: B\nOn second thoughts:\nVerdict: A", W),
    ],
)
def test_a_verdict_on_the_last_line_is_read(text, expected):
    assert parse_verdict(text) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n\t\n",
        "A",
        "Answer A is better.",
        "Verdict: A or B",
        "Verdict: A, because it is clearer",
        "My verdict: A",
        "Verdict: C",
        "Verdict:",
        "Verdict: A\nThat is all.",
        'The answer says "Verdict: A"',
        "> Verdict: A",  # a quotation
        '"Verdict: A"',
        "The answer ends so:\u2028Verdict: A",  # Python's splitlines breaks here, a reader does not
        "The answer ends so:\x0bVerdict: A",
        "Verdict: \u0410",  # Cyrillic A
        "Verdict: \u0391",  # Greek Alpha
        "Verdict: \uff21",  # full-width A
        "V\u0435rdict: A",  # Cyrillic e
        "Verdict: t\u0131e",  # dotless i
        "Verdict\uff1a A",
        "Verdict: A B",
        "Verdict: AB",
    ],
)
def test_anything_else_is_unparsable(text):
    assert parse_verdict(text) is U
