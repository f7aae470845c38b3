"""Rows and files at fault: one clear message, exit code 2, nothing lost, nothing half-written."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import pytest
from command_line import GOOD, Cli, assert_one_message, chat, deny, lines, pair

from pitlm.cli.main import main

DEEP = "[" * 100_000 + "]" * 100_000


# name -> (content of pairs.jsonl, expected part of the message; "{at}" is the file)
ROWS: dict[str, tuple[bytes, list[str]]] = {
    "empty file": (b"", ["{at}: found no preference", "0 rows"]),
    "blank lines only": (b"\n \n\n", ["{at}: found no preference"]),
    "broken JSON": (lines(*GOOD[:2], '{"prompt": "q", "chosen": ', GOOD[3]), ["{at}:3:", "broken JSON", "expected"]),
    "a line that breaks inside a string": (
        b'{"a": "b\n',
        ["{at}:1:", "broken JSON (Invalid control character at column 9)"],
    ),
    "two objects on a line": (lines(GOOD[0], '{"a": 1} {"b": 2}'), ["{at}:2:", "broken JSON (Extra data"]),
    "JSON of another kind": (lines(*GOOD[:2], [1, 2]), ["{at}:3:", "found a list of 2", "expected an object"]),
    "a number": (lines("3"), ["{at}:1:", "found a number (3)"]),
    "null": (lines("null"), ["{at}:1:", "found null"]),
    "wrong field": (
        lines(*GOOD[:2], {"prompt": "q", "good": "a", "rejected": "b"}),
        ["{at}:3: field 'chosen': found no such field", "prompt, good, rejected"],
    ),
    "missing field": (
        lines(GOOD[0], {"prompt": "q", "chosen": "a"}),
        ["{at}:2: field 'rejected': found no such field"],
    ),
    "an empty object": (lines(GOOD[0], "{}"), ["{at}:2: field 'chosen': found no such field"]),
    "a number for text": (
        lines(GOOD[0], pair(1, chosen=7)),
        ["{at}:2: field 'chosen': found a number (7)", "expected"],
    ),
    "null for text": (lines(GOOD[0], pair(1, rejected=None)), ["{at}:2: field 'rejected': found null"]),
    "a number for the prompt": (lines(pair(1, prompt=1.5)), ["{at}:1: field 'prompt': found a number (1.5)"]),
    "an object for text": (lines(pair(1, chosen={"text": "a"})), ["{at}:1: field 'chosen': found an object", "text"]),
    "turns that do not alternate": (
        lines(*GOOD[:4], pair(1, prompt=chat("user", "user"))),
        ["{at}:5: field 'prompt': found role 'user' in turn 2", "alternate"],
    ),
    "the assistant begins": (
        lines(pair(1, prompt=chat("assistant", "user"))),
        ["{at}:1: field 'prompt': found role 'assistant' in turn 1"],
    ),
    "a prompt that ends on the assistant": (
        lines(pair(1, prompt=chat("user", "assistant"))),
        ["{at}:1: field 'prompt': found a conversation that ends on 'assistant', expected it to end on 'user'"],
    ),
    "a conversation that ends on the user": (
        lines({"chosen": chat("user", "assistant", "user"), "rejected": chat("user", "assistant", "user")}),
        ["{at}:1: field 'chosen': found a conversation that ends on 'user', expected it to end on 'assistant'"],
    ),
    "an unknown role": (
        lines(pair(1, prompt=[{"role": "human", "content": "q"}])),
        ["{at}:1: field 'prompt': found a string ('human') as the role of message 1, expected one of system, user"],
    ),
    "content that is no text": (
        lines(pair(1, prompt=[{"role": "user", "content": ["q"]}])),
        ["{at}:1: field 'prompt': found a list of 1 as the content of message 1, expected a string"],
    ),
    "an empty prompt list": (lines(pair(1, prompt=[])), ["{at}:1: field 'prompt': found an empty list"]),
    "chosen equals rejected everywhere": (
        lines(*(pair(n, rejected=f"a good answer {n}") for n in range(5))),
        ["{at}: found no preference to learn from in 5 rows (5 dropped for equal responses)", "expected"],
    ),
    "empty responses everywhere": (
        lines(*(pair(n, rejected="") for n in range(3))),
        ["{at}: found no preference", "3 dropped for empty response"],
    ),
    "too few pairs for the folds": (lines(*GOOD[:3]), ["found 3 pairs with 3 distinct prompts", "sft, reward and rl"]),
    "one prompt for all pairs": (
        lines(*(pair(1, chosen=f"good {n}") for n in range(30))),
        ["found 30 pairs with 1 distinct prompt"],
    ),
    "all pairs over-long": (
        lines(*(pair(n, chosen="word " * 100) for n in range(30))),
        ["no pair within 64 prompt tokens and 32 response tokens", "data.max_response_tokens"],
    ),
    "not UTF-8": (lines(GOOD[0], b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}'), ["{at}:2:", "not UTF-8"]),
    "UTF-16": (json.dumps(GOOD[0]).encode("utf-16"), ["{at}:1:", "not UTF-8"]),
    "half a character": (lines(pair(1, chosen="\ud800 a")), ["{at}:1: field 'chosen': found half a character"]),
    "NUL bytes": (b"\0" * 4096, ["{at}:1:", "broken JSON"]),
    "deeply nested": (lines(GOOD[0], DEEP), ["{at}:2:", "broken JSON"]),
    "deeply nested inside a field": (lines('{"prompt": "q", "chosen": ' + DEEP + ', "rejected": "b"}'), ["{at}:1:"]),
    "a huge number": (lines('{"prompt": "q", "rejected": "b", "chosen": ' + "9" * 5000 + "}"), ["{at}:1:"]),
    "10 MB that never end": (lines(GOOD[0], '{"prompt": "' + "x" * 10_000_000), ["{at}:2:", "broken JSON"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_at_fault_stop_the_run(cli: Cli, name: str) -> None:
    content, wanted = ROWS[name]
    source = cli.source("pairs.jsonl", content)
    code, message = cli.run_data(source)
    assert code == 2, message
    assert_one_message(message)
    assert len(message) < 600, "the message drowns in its data"
    for part in wanted:
        assert part.format(at=source) in message
    assert not cli.out.exists()
    assert source.read_bytes() == content


@pytest.mark.parametrize("name", ["broken JSON", "wrong field", "empty file", "deeply nested", "not UTF-8"])
@pytest.mark.parametrize("verb", ["inspect", "prepare"])
def test_data_verbs_say_the_same(cli: Cli, name: str, verb: str) -> None:
    content, wanted = ROWS[name]
    source = cli.source("pairs.jsonl", content)
    message = cli.refused("data", verb, source, *(["--out", cli.out] if verb == "prepare" else []))
    for part in wanted:
        assert part.format(at=source) in message
    assert not cli.out.exists() or list(cli.out.iterdir()) == []


def test_a_mended_file_runs_in_the_same_folder(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD, "{"))
    assert cli.run_data(source)[0] == 2
    source.write_bytes(lines(*GOOD))
    assert cli.run_data(source) == (0, "")
    assert (cli.out / "data" / "summary.json").is_file()


HARMLESS: dict[str, bytes] = {
    "byte order mark": b"\xef\xbb\xbf" + lines(*GOOD),
    "carriage returns": lines(*GOOD).replace(b"\n", b"\r\n"),
    "no newline at the end": lines(*GOOD).rstrip(b"\n"),
    "NUL inside text": lines(*GOOD, pair(99, chosen="a \0 b")),
    "every script": lines(*GOOD, pair(99, prompt="価格は？ \u2028 ¿Qué? 🦜🏽 \u202eطلب", chosen="ﷺ é̸")),
    "separators of lines inside JSON": "\n".join(
        json.dumps(pair(n, chosen="a\u2028\x85b"), ensure_ascii=False) for n in range(40)
    ).encode(),
    "further fields": lines(*(pair(n, score=[1, {"a": None}]) for n in range(40))),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_but_sound_files_are_read(cli: Cli, name: str) -> None:
    source = cli.source("pairs.jsonl", HARMLESS[name])
    assert cli.run_data(source, "--set", "data.max_response_tokens=40") == (0, "")
    summary = json.loads((cli.out / "data" / "summary.json").read_text())
    assert (summary["read"], summary["invalid"]) == (HARMLESS[name].rstrip().count(b"\n") + 1, 0)


def test_skip_invalid_sets_rows_aside_with_the_reason_of_each(cli: Cli) -> None:
    bad = ["{", pair(1, chosen=7), {"prompt": "q"}, pair(2, prompt=chat("user", "user")), b"\xff\xfe", DEEP, "null"]
    source = cli.source("pairs.jsonl", lines(*GOOD[:20], *bad, *GOOD[20:]))
    assert cli.run_data(source, "--skip-invalid") == (0, "")
    rejects = [json.loads(line) for line in (cli.out / "data" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == list(range(21, 21 + len(bad)))
    assert all(reject["file"] == str(source) for reject in rejects)
    reasons = [reject["reason"] for reject in rejects]
    assert "broken JSON" in reasons[0]
    assert reasons[1].startswith("field 'chosen': found a number (7)")
    assert reasons[2].startswith("field 'chosen': found no such field")
    assert "alternate" in reasons[3]
    assert "UTF-8" in reasons[4]
    assert "found null" in reasons[6]
    summary = json.loads((cli.out / "data" / "summary.json").read_text())
    assert (summary["read"], summary["kept"], summary["invalid"]) == (47, 40, 7)


def test_a_run_says_what_became_of_the_rows(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from pitlm.io import console

    monkeypatch.setattr(console, "WIDTH", 1_000)
    over_long, equal = pair(1, chosen="word " * 100), pair(2, rejected="a good answer 2")
    source = cli.source("pairs.jsonl", lines(*GOOD, "{", over_long, equal))
    arguments = ["run", cli.recipe, "--data", source, "--out", cli.out, "--until", "data", "--skip-invalid"]
    with pytest.raises(SystemExit):
        main([str(argument) for argument in arguments])
    wanted = "Read 43 rows: 41 kept, 1 dropped (equal responses), 1 invalid (set aside in data/rejects.jsonl)"
    assert f"{wanted}; 1 over-long pairs dropped\n" in cli.capsys.readouterr().out


def test_nothing_but_invalid_rows_is_refused_and_says_why(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines("{", "[]"))
    code, message = cli.run_data(source, "--skip-invalid")
    assert code == 2
    assert "no preference to learn from in 2 rows (2 invalid)" in message
    assert not cli.out.exists()


def csv_text(*records: list[str]) -> bytes:
    import io

    text = io.StringIO()
    csv.writer(text).writerows(records)
    return text.getvalue().encode()


FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "another kind of file": ("pairs.txt", b"hello", ["found a file of kind '.txt'", ".jsonl"]),
    "no kind at all": ("pairs", b"hello", ["found a file of kind ''", ".jsonl"]),
    "broken json": ("pairs.json", b'[{"a": 1},\n {"b": }]', ["pairs.json:2:", "broken JSON"]),
    "json that is no list": ("pairs.json", b'{"rows": []}', ["an object without a list 'data'"]),
    "empty json": ("pairs.json", b"", ["broken JSON"]),
    "empty list": ("pairs.json", b"[]", ["no preference to learn from in 0 rows"]),
    "csv with a short row": ("pairs.csv", b"prompt,chosen,rejected\nq,a\n", ["pairs.csv:2:", "2 cells", "expected 3"]),
    "csv with an open quote": ("pairs.csv", b'prompt,chosen,rejected\nq,"a,b\n', ["pairs.csv:2:", "broken CSV"]),
    "csv without header": ("pairs.csv", csv_text(["q", "a", "b"], ["q", "a", "b"]), ["pairs.csv:2: field 'chosen'"]),
    "cut gzip": ("pairs.jsonl.gz", gzip.compress(lines(*GOOD), mtime=0)[:-20], ["damaged gzip"]),
    "no gzip": ("pairs.jsonl.gz", lines(*GOOD), ["damaged gzip"]),
    "no parquet": ("pairs.parquet", b"PAR1 nonsense", ["cannot load a parquet file"]),
    "empty parquet": ("pairs.parquet", b"", ["cannot load a parquet file"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_at_fault_stop_the_run(cli: Cli, name: str) -> None:
    file, content, wanted = FILES[name]
    source = cli.source(file, content)
    code, message = cli.run_data(source)
    assert code == 2, message
    assert_one_message(message)
    for part in (str(source), *wanted):
        assert part in message
    assert not cli.out.exists()


def test_a_missing_file_is_named(cli: Cli) -> None:
    code, message = cli.run_data(cli.tmp_path / "nowhere.jsonl")
    assert code == 2
    assert f"{cli.tmp_path / 'nowhere.jsonl'}: found no such file or folder" in message
    assert not cli.out.exists()


def test_a_folder_without_data_is_named(cli: Cli) -> None:
    folder = cli.tmp_path / "folder.jsonl"
    folder.mkdir()
    (folder / "notes.txt").write_text("hello")
    code, message = cli.run_data(folder)
    assert code == 2
    assert f"{folder}: found a folder with no data files (1 others)" in message


def test_an_unreadable_file_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    deny(monkeypatch, source)
    code, message = cli.run_data(source)
    assert (code, message) == (2, f"Error: {source}: Permission denied\n")
    assert not cli.out.exists()


def test_a_hub_name_without_a_hub_is_explained(cli: Cli) -> None:
    code, message = cli.run_data("nobody/no-such-set")
    assert code == 2
    assert_one_message(message)
    assert "nobody/no-such-set: this path does not exist here" in message
    assert not cli.out.exists()


def test_a_hub_name_for_the_model_without_a_hub_is_explained(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    code, message = cli.run_data(source, "--set", "model.init=null", "--set", "model.base=nobody/no-such-model")
    assert code == 2
    assert_one_message(message)
    assert "nobody/no-such-model: cannot load a model: no such folder, and none on the hub" in message
    assert not cli.out.exists()


@pytest.mark.parametrize("name", ["2024-11-25", "12", "yes", "a: b.jsonl", "#x.jsonl", "'x'.jsonl"])
def test_a_name_of_data_is_taken_as_it_is(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Not read as YAML, where the first name is a date."""
    monkeypatch.chdir(cli.tmp_path)
    path = Path(name) if name.endswith(".jsonl") else Path(name) / "pairs.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lines(*GOOD))
    assert cli.run_data(name) == (0, "")


@pytest.mark.parametrize("arguments", [["data", "inspect", ""], ["run", "recipe.yaml", "--data", ""]])
def test_an_empty_name_of_data_is_not_the_folder_where_one_stands(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(cli.tmp_path)
    cli.source("pairs.jsonl", lines(*GOOD))
    assert "found an empty name" in cli.refused(*arguments)


def test_a_run_inside_its_own_data_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run would read its own output; runs/ is the default folder."""
    monkeypatch.chdir(cli.tmp_path)
    cli.source("pairs.jsonl", lines(*GOOD))
    assert "found a folder inside the source ., expected one outside it" in cli.refused(
        "run", cli.recipe, "--data", "."
    )
    assert not Path("runs").exists()


def test_no_data_at_all_says_how_to_give_it(cli: Cli) -> None:
    message = cli.refused("run", cli.recipe, "--out", cli.out)
    assert "--data" in message
    assert not cli.out.exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("command", ["evaluate --plan", "doctor quickstart --price", "data prepare x --out y --test"])
def test_no_option_takes_what_is_no_number(cli, command, value):
    message = cli.refused(*command.split(), value)
    assert re.search(rf"(found '?|: ){value}('|,|:| is not in the range)", message)


NINES = "9" * 400
ODD_ROWS = {
    "scores": f'{{"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": {NINES}, "score_rejected": 1}}',
    "ranks": f'{{"prompt": "a", "answers": [{{"answer": "x", "rank": {NINES}}}, {{"answer": "y", "rank": 1}}]}}',
    "messages": json.dumps({"prompt": "[{'role': 'user', {} : 'a'}]", "chosen": "b", "rejected": "c"}),
}


@pytest.mark.parametrize("row", ODD_ROWS.values(), ids=ODD_ROWS)
def test_a_number_without_a_float_and_a_message_without_a_hash_are_no_traceback(cli, row):
    source = cli.source("pairs.jsonl", (row + "\n").encode())
    code, message = cli("data", "inspect", source)
    assert code in (0, 2)
    assert "Traceback" not in message


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int ''", "!!float []"])
def test_a_tag_of_yaml_that_does_not_fit_is_one_message(cli, value):
    assert "cannot read the value" in cli.refused("run", "quickstart", "--set", f"loop.rounds={value}")


def test_a_bomb_of_yaml_is_one_short_message(cli):
    layers = [
        f"&{name} [{', '.join([inner] * 10)}]"
        for name, inner in zip("abcdefghi", ["x", *(f"*{n}" for n in "abcdefgh")], strict=True)
    ]
    cli.recipe.write_text(f"name: [{', '.join(layers)}]\n")
    assert len(cli.refused("run", cli.recipe)) < 5_000
