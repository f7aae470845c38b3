"""No text moves the cursor of a terminal, sets its title, or hides what is printed beside it."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

import pitlm
from pitlm.cli.main import main
from pitlm.io.console import VisibleConsole
from pitlm.io.visible import echo, one_line, visible

HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\re\x08f\u202eg\u2066h\x7fi\ud800j\x00"
FORBIDDEN = {"Cc", "Cs"}


def harmless(printed):
    printed.encode("utf-8")
    assert not [c for c in printed if unicodedata.category(c) in FORBIDDEN and c not in "\n\t"]
    assert not set(printed) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@given(st.text(st.characters() | st.sampled_from(HOSTILE)))
def test_every_character_is_printed_and_none_controls(text):
    harmless(visible(text))
    assert len(visible(text)) == len(text)
    assert visible(visible(text)) == visible(text)


@given(st.text(st.characters() | st.sampled_from(HOSTILE + "\r\n\t\u2028 ")))
def test_one_line_is_one_line_of_the_same_words(text):
    made = one_line(text)
    harmless(made)
    assert len(made.splitlines()) <= 1
    assert made.isprintable()
    assert "".join(made.split()) == "".join(c for c in text if c.isprintable() and not c.isspace())


@pytest.mark.parametrize("text", ["plain", "a\n\tb", "שלום‏ أهلا", "👩‍👩‍👧 naïve ﬁ", "[bold]x[/bold]"])
def test_other_text_is_left_as_it_is(text):
    assert visible(text) == text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_prints_no_control_sequence_of_a_text(terminal):
    file = io.StringIO()
    console = VisibleConsole(file=file, markup=False, force_terminal=terminal, color_system=None, width=200)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE, Text(HOSTILE), table)
    harmless(file.getvalue())
    assert file.getvalue().count("␛]0;title") >= 5


def test_a_line_outside_the_console_is_visible_too(capsys):
    echo(HOSTILE)
    echo(HOSTILE, err=True)
    for printed in capsys.readouterr():
        harmless(printed)
        assert "␛[2Jc" in printed


def test_every_line_of_the_package_goes_through_the_two():
    root = Path(pitlm.__file__).parent
    printing = re.compile(r"click\.(?:echo|secho)\(|(?<!\w)Console\(|(?<![\w.])print\(")
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if printing.search(path.read_text("utf-8"))}
    assert found <= {"io/visible.py", "io/console.py"}


@pytest.mark.parametrize("command", ["evaluate", "inspect", "missing", "option"])
def test_names_samples_and_messages_are_printed_visibly(command, tmp_path, capfd):
    hostile = HOSTILE.replace("\ud800", "").replace("\x00", "")
    verdicts, pairs = tmp_path / "verdicts.jsonl", tmp_path / "pairs.jsonl"
    row = {"item": "1", "first": hostile, "second": "b", "judge": hostile, "verdict": "win"}
    verdicts.write_text(json.dumps(row) + "\n")
    pairs.write_text(json.dumps({"prompt": hostile, "chosen": hostile + "c", "rejected": hostile}) + "\n")
    arguments = {
        "evaluate": ["evaluate", str(verdicts), "--resamples", "20"],
        "inspect": ["data", "inspect", str(pairs)],
        "missing": ["data", "inspect", hostile],
        "option": ["run", hostile, f"--{hostile}"],
    }
    with pytest.raises(SystemExit):
        main(arguments[command])
    out, err = capfd.readouterr()
    harmless(out + err)
    assert "␛" in out + err or r"\x1b" in out + err  # click spells them so
