"""Whatever is wrong with the input: one clear message, exit code 2, nothing lost, nothing half-written."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pitlm.cli.main import ENVIRONMENT, main

TRAIN = {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 4}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"test": 0.2, "validation": 0.2, "max_prompt_tokens": 64, "max_response_tokens": 32},
    "model": {"init": {"layers": 1, "hidden": 16, "heads": 2, "mlp": 16}, "improver_start": "policy"},
    "policy_sft": TRAIN,
    "reward": TRAIN,
    "improver_sft": TRAIN,
    "gap": TRAIN,
    "curriculum": {"rl": {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 4, "group": 2}},
}


def pair(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"question {number} ?", "chosen": f"a good answer {number}", "rejected": "a bad one", **fields}


def lines(*rows: Any) -> bytes:
    """JSON lines; bytes and strings stand for themselves."""
    made = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()
        for row in rows
    ]
    return b"".join(row + b"\n" for row in made)


GOOD = [pair(number) for number in range(40)]


class Cli:
    """`pit`, called as from a shell."""

    def __init__(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        self.capsys, self.tmp_path = capsys, tmp_path
        self.out = tmp_path / "run"
        self.recipe = tmp_path / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(RECIPE))

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Exit code and stderr."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert isinstance(stop.value.code, int)
        return stop.value.code, self.capsys.readouterr().err

    def source(self, name: str, content: bytes) -> Path:
        path = self.tmp_path / name
        path.write_bytes(content)
        return path

    def run_data(self, source: object, *options: object) -> tuple[int, str]:
        return self("run", self.recipe, "--data", source, "--out", self.out, "--until", "data", *options)

    def refused(self, *arguments: object) -> str:
        """The message of a call that has to fail as a bad input does."""
        code, message = self(*arguments)
        assert code == 2, message
        assert_one_message(message)
        return message


def assert_one_message(message: str) -> None:
    assert "Traceback" not in message
    # Ours is one line from "Error:", click's has its usage above.
    assert [line.startswith(("Error: ", "Usage: ")) for line in message.splitlines()].count(True) in (1, 2), message
    assert message.count("Error: ") == 1, message


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ENVIRONMENT:  # main() sets these for the process; put back what was there
        monkeypatch.setenv(name, os.environ.get(name, ENVIRONMENT[name]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Cli(capsys, tmp_path)


def chat(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} says"} for role in roles]


DEEP = "[" * 100_000 + "]" * 100_000

# name -> (content of pairs.jsonl, what the message has to say; "{at}" is the file)
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
        ["{at}:1: field 'prompt':", "'assistant' comes last"],
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
    "no parquet": ("pairs.parquet", b"PAR1 nonsense", ["damaged parquet"]),
    "empty parquet": ("pairs.parquet", b"", ["damaged parquet"]),
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
    assert (code, message) == (2, f"Error: {source}: no permission\n")
    assert not cli.out.exists()


def deny(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Refuse to open ``path``, as the system does to all but root."""
    import builtins
    import io

    real = io.open

    def guarded(file: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(file, int) and Path(file) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", guarded)
    monkeypatch.setattr(io, "open", guarded)


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
    assert "nobody/no-such-model: found no such folder, and no model on the hub" in message
    assert not cli.out.exists()


@pytest.mark.parametrize("name", ["2024-11-25", "12", "yes", "a: b.jsonl", "#x.jsonl", "'x'.jsonl"])
def test_a_name_of_data_is_taken_as_it_is(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Not as YAML, in which the first is a date."""
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
    """It would read what it wrote; runs/ is where a run goes by default."""
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


SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "unknown section": (["curiculum.rl.beta=1"], ["unknown key 'curiculum'", "did you mean 'curriculum'?"]),
    "unknown key": (["curriculum.rl.betta=1"], ["unknown key 'curriculum.rl.betta'", "did you mean 'beta'?"]),
    "unknown key, nothing near": (
        ["loop.qqqq=1"],
        ["unknown key 'loop.qqqq'", "rounds, proposals, margin, temperature"],
    ),
    "unknown key in a new section": (["peft.rank=4"], ["unknown key 'peft.rank'", "expected one of r,"]),
    "unknown key in init": (["model.init.layer=4"], ["unknown key 'model.init.layer'", "did you mean 'layers'?"]),
    "negative beta": (["curriculum.rl.beta=-0.1"], ["'curriculum.rl.beta': found -0.1", "greater than or equal to 0"]),
    "beta not a number": (["curriculum.rl.beta=.nan"], ["'curriculum.rl.beta': found nan"]),
    "infinite learning rate": (["gap.learning_rate=.inf"], ["'gap.learning_rate': found inf"]),
    "beta in words": (["curriculum.rl.beta=much"], ["'curriculum.rl.beta': found 'much'"]),
    "zero rounds": (["loop.rounds=0"], ["'loop.rounds': found 0", "greater than 0"]),
    "half a round": (["loop.rounds=1.5"], ["'loop.rounds': found 1.5"]),
    "group that does not divide": (["curriculum.rl.group=3"], ["curriculum.rl", "multiple of group 3"]),
    "group of one": (["curriculum.rl.group=1"], ["'curriculum.rl.group': found 1"]),
    "test share of one": (["data.test=1.0"], ["'data.test': found 1.0", "less than 1"]),
    "test share above one": (["data.test=3"], ["'data.test': found 3"]),
    "shares that leave nothing": (
        ["data.test=0.6", "data.validation=0.5"],
        ["'data': found a section: test 0.6 + validation 0.5", "below 1"],
    ),
    "no learning rate": (["gap.learning_rate=0"], ["'gap.learning_rate': found 0"]),
    "heads that do not divide": (["model.init.heads=3"], ["model.init", "hidden 16", "heads 3"]),
    "unknown schedule": (["gap.schedule=quadratic"], ["'gap.schedule': found 'quadratic'", "'linear', 'cosine'"]),
    "unknown source of references": (["curriculum.stages=[data, human]"], ["curriculum.stages", "'human'"]),
    "improver first": (["curriculum.stages=[improver]"], ["the first stage cannot take references from the improver"]),
    "no stages": (["curriculum.stages=[]"], ["curriculum.stages"]),
    "steps for other stages": (["curriculum.steps=[5]"], ["'steps' has 1 entries for 2 stages"]),
    "base and init": (["model.base=somewhere"], ["either 'base'", "or 'init'"]),
    "neither base nor init": (["model.init=null"], ["either 'base'", "or 'init'"]),
    "negative seed": (["seed=-1"], ["'seed': found -1"]),
    "a list for a section": (["loop=[1]"], ["'loop': found [1]"]),
    "a key below a value": (["seed.x=1"], ["'seed': found a section"]),
    "a key below a value that is set": (["name.x=1"], ["--set name.x: 'name' is not a section"]),
    "a key below nothing": (["=3"], ["--set: found '=3', expected KEY=VALUE"]),
    "no value": (["loop.rounds"], ["--set: found 'loop.rounds', expected KEY=VALUE"]),
    "an empty value": (["loop.rounds="], ["'loop.rounds': found None"]),
    "broken value": (["loop.rounds=[1"], ["--set loop.rounds: cannot read the value '[1'"]),
    "dots only": (["..=1"], ["unknown key"]),
    "an unknown tracker": (["report_to=[nothing-known]"], ["report_to", "nothing-known"]),
    "a name with a slash": (["name=../x"], ["'name': found '../x'"]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_at_fault_are_named(cli: Cli, name: str) -> None:
    overrides, wanted = SETTINGS[name]
    source = cli.source("pairs.jsonl", lines(*GOOD))
    code, message = cli.run_data(source, *(part for item in overrides for part in ("--set", item)))
    assert code == 2, message
    assert_one_message(message)
    for part in wanted:
        assert part in message
    assert not cli.out.exists()


RECIPES: dict[str, tuple[bytes, list[str]]] = {
    "no YAML": (b"data: [1, 2\nmodel: }", ["found broken YAML", "expected a recipe"]),
    "a list": (b"- data\n- model\n", ["found list, expected a mapping of sections"]),
    "a word": (b"hello", ["expected a mapping of sections"]),
    "nothing": (b"", ["expected a mapping of sections"]),
    "binary": (b"\x80\x81\x82", ["cannot read the recipe"]),
    "a tab": (b"data:\n\ttest: 0.1\n", ["found broken YAML"]),
    "an object of Python": (b"name: !!python/object/apply:os.system ['true']\n", ["found broken YAML"]),
    "endless recursion": (b"&a [*a]", ["expected a mapping of sections"]),
    "merge": (b"a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", ["twice"]),
    "a key that is no text": (b"1: 2\n", ["key '1'"]),
    "sections missing": (b"name: x\n", ["key 'data' is missing", "key 'model' is missing"]),
    "a section twice": (
        yaml.safe_dump(RECIPE).encode() + b"loop: {rounds: 1}\nloop: {rounds: 5}\n",
        ["'loop'", "twice"],
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_at_fault_are_named(cli: Cli, name: str) -> None:
    content, wanted = RECIPES[name]
    path = cli.source("mine.yaml", content)
    message = cli.refused("run", path, "--out", cli.out)
    for part in (str(path), *wanted):
        assert part in message
    assert not cli.out.exists()


def test_a_recipe_that_is_a_folder_or_missing_is_named(cli: Cli) -> None:
    assert f"{cli.tmp_path}: found no such recipe" in cli.refused("run", cli.tmp_path)
    assert "quickstrat: found no such recipe" in cli.refused("run", "quickstrat")


def test_a_recipe_nobody_may_read_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, cli.recipe)
    assert f"{cli.recipe}: cannot read the recipe" in cli.refused("run", cli.recipe, "--out", cli.out)


def test_until_an_unknown_stage_lists_the_stages(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    message = cli.refused("run", cli.recipe, "--data", source, "--out", cli.out, "--until", "the end")
    assert "--until: found 'the end', expected one of data, policy-sft, reward" in message
    assert not cli.out.exists()


def test_a_folder_with_other_files_is_kept(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    cli.out.mkdir()
    (cli.out / "thesis.tex").write_text("mine")
    code, message = cli.run_data(source)
    assert code == 2
    assert f"{cli.out}: found a folder that holds other files" in message
    assert [path.name for path in cli.out.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_kept(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    cli.out.write_text("mine")
    code, message = cli.run_data(source)
    assert code == 2
    assert f"{cli.out}: found a file" in message
    code, message = cli("run", cli.recipe, "--data", source, "--out", cli.out / "below", "--until", "data")
    assert code == 2
    assert_one_message(message)
    assert "is a file, not a folder" in message
    assert cli.out.read_text() == "mine"


def test_another_run_in_the_folder_is_kept(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    assert cli.run_data(source) == (0, "")
    before = {path: path.read_bytes() for path in cli.out.rglob("*") if path.is_file()}
    for option, named in (("seed=5", "seed: found 0, now 5"), ("data.pairs=30", "data.pairs: found None, now 30")):
        code, message = cli.run_data(source, "--set", option)
        assert code == 2
        assert named in message
        assert "--update" in message
    source.write_bytes(lines(*GOOD[:30]))
    code, message = cli.run_data(source)
    assert code == 2
    assert "data.source: found" in message
    assert {path: path.read_bytes() for path in cli.out.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_one_message(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, message = cli.run_data(source)
    assert code == 2
    assert_one_message(message)
    assert "the disk is full" in message
    monkeypatch.undo()
    assert cli.run_data(source)[0] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many KiB; skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk-{kib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount here")
        if done.returncode != 0:
            pytest.skip("may not mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


POCKET = {**RECIPE, "data": {**RECIPE["data"], "source": "pocket", "pairs": 60, "max_new_tokens": 8}}


@pytest.mark.parametrize(("kib", "stage"), [(16, "data"), (120, "policy-sft")])
def test_a_disk_that_fills_up_loses_nothing(cli: Cli, small_disk: Callable[[int], Path], kib: int, stage: str) -> None:
    disk = small_disk(kib)
    cli.recipe.write_text(yaml.safe_dump({**POCKET, "evaluation": {"items": 4, "fresh_pairs": 4, "resamples": 20}}))
    command = [sys.executable, "-m", "pitlm.cli.main", "run", cli.recipe, "--out", disk / "run", "--until", stage]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr + done.stdout
    assert_one_message(done.stderr)
    assert "the disk is full" in done.stderr
    records = [json.loads(path.read_text()) for path in disk.rglob("stage.json")]
    assert all(record["status"] in ("started", "done") for record in records)
    assert not list(disk.rglob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr


@pytest.fixture(scope="module")
def models(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an improver and a gap model, untrained, of the pocket world's kind."""
    from builders import generator_checkpoint, scorer_checkpoint

    folder = tmp_path_factory.mktemp("models")
    generator_checkpoint(bases("words"), folder / "improver", "improver")
    scorer_checkpoint(bases("words"), folder / "gap", "gap")
    return folder


def improving(models: Path, file: Path, *options: object) -> list[object]:
    out = file.parent / "better.jsonl"
    return ["improve", file, "-o", out, "--improver", models / "improver", "--gap", models / "gap", *options]


ANSWERS = [{"prompt": f"is it small {n} ?", "response": "the price is nine ."} for n in range(4)]

ANSWER_ROWS: dict[str, tuple[bytes, list[str]]] = {
    "broken third line": (lines(*ANSWERS[:2], '{"prompt": ', ANSWERS[3]), ["{at}:3:", "broken JSON"]),
    "empty file": (b"", ["{at}: found no rows", "'prompt' and 'response'"]),
    "a list": (lines(ANSWERS[0], [1]), ["{at}:2: found a list of 1, expected an object"]),
    "no prompt": (
        lines(ANSWERS[0], {"response": "a"}),
        ["{at}:2: found the fields response, expected 'prompt' or 'messages' or 'instruction'"],
    ),
    "prompt a number": (
        lines({"prompt": 3, "response": "a"}),
        ["{at}:1: field 'prompt': found a number (3), expected a string or a list of messages"],
    ),
    "prompt ends on the assistant": (
        lines(ANSWERS[0], {"prompt": chat("user", "assistant"), "response": "a"}),
        ["{at}:2: field 'prompt': found a conversation in which 'assistant' comes last"],
    ),
    "an unknown role": (
        lines({"messages": [{"role": "bot", "content": "q"}], "response": "a"}),
        ["{at}:1: field 'messages': found a string ('bot') as the role of message 1"],
    ),
    "response a list": (
        lines(ANSWERS[0], {"prompt": "q", "response": ["a"]}),
        ["{at}:2: field 'response': found a list of 1, expected a string"],
    ),
    "no response and no policy": (lines(ANSWERS[0], {"prompt": "q"}), ["{at}:2: found no response", "--policy"]),
    "half a character in the prompt": (
        lines({"prompt": "\udc00", "response": "a"}),
        ["{at}:1: field 'prompt':", "half"],
    ),
    "half a character in the response": (
        lines(ANSWERS[0], {"prompt": "q", "response": "\ud83d"}),
        ["{at}:2: field 'response':", "half a character"],
    ),
    "a prompt beyond the window": (
        lines(ANSWERS[0], {"prompt": "price " * 500, "response": "a"}, ANSWERS[1]),
        ["{at}:2: found a conversation of 5", "expected at most"],
    ),
}


@pytest.mark.parametrize("name", ANSWER_ROWS)
def test_answers_at_fault_are_set_aside_with_the_reason_and_the_others_improved(
    cli: Cli, models: Path, name: str
) -> None:
    content, wanted = ANSWER_ROWS[name]
    source = cli.source("answers.jsonl", content)
    sound = sum(line in lines(*ANSWERS) for line in content.splitlines(keepends=True))
    out, aside = cli.tmp_path / "better.jsonl", cli.tmp_path / "better.failed.jsonl"
    if sound:
        assert cli(*improving(models, source)) == (0, "")
        assert len(out.read_text().splitlines()) == sound
        [failed] = [json.loads(line) for line in aside.read_text().splitlines()]
        message = f"{failed['where']}: {failed['reason']}"
        number = int(failed["where"].rpartition(":")[2])
        given = content.splitlines()[number - 1].decode()
        assert failed["row"] == (given if "broken" in name else json.loads(given))
    else:  # nothing could be done: as any bad input
        message = cli.refused(*improving(models, source))
        assert not out.exists()
    for part in wanted:
        assert part.format(at=source) in message
    assert not list(cli.tmp_path.glob("*.partial"))
    assert source.read_bytes() == content


def test_odd_but_sound_answers_are_improved(cli: Cli, models: Path) -> None:
    rows = [
        {"prompt": "a \0 b", "response": "c \0"},
        {"prompt": "", "response": ""},
        {"prompt": "価格は？ \u2028 🦜🏽", "response": "\u202eﷺ", "own": {"x": [None, 1e300]}},
    ]
    source = cli.source("answers.jsonl", b"\xef\xbb\xbf" + lines(*rows).replace(b"\n", b"\r\n"))
    assert cli(*improving(models, source)) == (0, "")
    made = [json.loads(line) for line in (cli.tmp_path / "better.jsonl").read_bytes().split(b"\n") if line]
    assert [row["prompt"] for row in made] == [row["prompt"] for row in rows]
    assert made[2]["own"] == {"x": [None, 1e300]}


def test_answers_from_parquet_may_hold_dates(cli: Cli, models: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    source = cli.tmp_path / "answers.parquet"
    table = {"prompt": ["q"], "response": ["a"], "when": [datetime.date(2024, 2, 29)], "raw": [b"\xff"]}
    pyarrow.parquet.write_table(pyarrow.table(table), source)
    assert cli(*improving(models, source)) == (0, "")
    assert json.loads((cli.tmp_path / "better.jsonl").read_text())["when"] == "2024-02-29"


def test_wrong_kinds_of_model_are_named(cli: Cli, models: Path) -> None:
    source = cli.source("answers.jsonl", lines(*ANSWERS))
    plain = cli.tmp_path / "plain"
    plain.mkdir()
    for improver, gap, wanted in (
        (
            models / "gap",
            models / "gap",
            f"{models / 'gap'}: found a model trained as gap, expected one trained as improver",
        ),
        (models / "improver", models / "improver", "found a model trained as improver, expected one trained as gap"),
        (models / "improver", plain, f"{plain}: found no pit.json"),
        (models / "nowhere", models / "gap", f"{models / 'nowhere'}: found no such folder"),
        (models / "improver" / "config.json", models / "gap", "config.json: found no such folder"),
        (models, models / "gap", f"{models}: found no pit.json"),
    ):
        message = cli.refused("improve", source, "-o", cli.tmp_path / "b.jsonl", "--improver", improver, "--gap", gap)
        assert wanted in message
    assert not (cli.tmp_path / "b.jsonl").exists()


def test_a_damaged_model_is_named(cli: Cli, models: Path) -> None:
    import shutil

    source = cli.source("answers.jsonl", lines(*ANSWERS))
    for name, content in (
        ("model.safetensors", b"\0\0"),
        ("model.safetensors", None),
        ("config.json", b"{"),
        ("config.json", None),
        ("tokenizer.json", b"{"),
        ("pit.json", b"[]"),
        ("pit.json", b'{"kind": "improver"}'),
    ):
        broken = cli.tmp_path / "broken"
        shutil.copytree(models / "improver", broken)
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_bytes(content)
        message = cli.refused(*improving(models, source, "--improver", broken))
        assert str(broken) in message
        shutil.rmtree(broken)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], "give either a FILE of answers or --prompt"),
        (["FILE", "--prompt", "q"], "give either a FILE of answers or --prompt"),
        (["FILE"], "-o: found nothing"),
        (["FILE", "-o", "OUT", "--response", "a"], "--response: found beside FILE"),
        (["--prompt", "q", "-o", "OUT", "--run", "x"], "-o: found beside --prompt"),
        (
            ["--prompt", "q", "--run", "x", "--base-url", "http://x/v1"],
            "--base-url: found beside --engine transformers",
        ),
        (["--prompt", "q", "--run", "x", "--engine", "endpoint"], "--model: found nothing"),
        (["--prompt", "q", "--engine", "endpoint", "--model", "m"], "give --run (a finished run) or --gap"),
        (["--prompt", "q", "--run", "x", "--engine", "triton"], "--engine"),
        (["--prompt", "q", "--run", "x", "--policy-url", "http://x/v1"], "--policy-model: found nothing"),
        (["--prompt", "q", "--run", "x", "--tokens-per-batch", "0"], "--tokens-per-batch"),
        (["--prompt", " ", "--response", "a"], "--prompt: found nothing"),
        (["--prompt", "q \udcff", "--response", "a"], "--prompt: found bytes that are not UTF-8"),
        (["FILE", "-o", "OUT"], "give --run (a finished run), or both --improver and --gap"),
        (["FILE", "-o", "OUT", "--gap", "x"], "give --run (a finished run), or both --improver and --gap"),
        (["FILE", "-o", "FOLDER", "--force", "--run", "x"], "found a folder, expected the file"),
        (["FILE", "-o", "FILE", "--run", "x"], "exists already"),
        (["FILE", "-o", "FILE/below", "--run", "x"], "is a file, not a folder"),
        (["FILE", "-o", "OUT", "--run", "FOLDER"], "found no recipe.json, expected the folder of a run"),
        (["NOWHERE.jsonl", "-o", "OUT", "--run", "FOLDER"], "found no such file or folder"),
        (["--prompt", "q", "--run", "x", "--rounds", "0"], "--rounds"),
        (["--prompt", "q", "--run", "x", "--margin", "-1"], "--margin"),
        (["--prompt", "q", "--run", "x", "--margin", "nan"], "--margin"),
        (["--prompt", "q", "--run", "x", "--temperature", "inf"], "--temperature"),
        (["--prompt", "q", "--run", "x", "--seed", "99999999999999999999"], "--seed"),
        (["--promt", "q"], "--prompt"),
        (["FILE", "-o", "OUT", "--run", "x", "--workers", "2"], "--workers: found beside --engine transformers"),
        (["FILE", "-o", "OUT", "--run", "x", "--part-rows", "9"], "--part-rows: found beside --engine transformers"),
        (["--prompt", "q", "--run", "x", "--engine", "ray"], "--engine ray: found beside --prompt"),
        (["FILE", "-o", "FILE", "--run", "x", "--engine", "ray"], "found a file, expected the folder"),
        (["FILE", "-o", "FOLDER", "--run", "x", "--engine", "ray"], "exists already"),
        (["FILE", "-o", "FOLDER/..", "--run", "x", "--engine", "ray", "--force"], "only part-*.jsonl to replace"),
    ],
)
def test_options_of_improve_at_fault_are_named(cli: Cli, options: list[str], wanted: str) -> None:
    source = cli.source("answers.jsonl", lines(*ANSWERS))
    (cli.tmp_path / "folder").mkdir()
    places = {"FILE": source, "OUT": cli.tmp_path / "out.jsonl", "FOLDER": cli.tmp_path / "folder"}
    for name, path in places.items():
        options = [option.replace(name, str(path)) for option in options]
    message = cli.refused("improve", *options)
    assert wanted in message
    assert source.read_bytes() == lines(*ANSWERS)
    assert not (cli.tmp_path / "out.jsonl").exists()


def test_an_unfinished_run_is_explained(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD))
    assert cli.run_data(source) == (0, "")
    message = cli.refused("improve", "--run", cli.out, "--prompt", "q", "--response", "a")
    assert "found no such folder, expected a model trained as gap" in message


def test_from_a_shell_it_is_one_line_and_code_two(cli: Cli) -> None:
    source = cli.source("pairs.jsonl", lines(*GOOD[:2], '{"prompt": "q", "chosen": 3, "rejected": "b"}'))
    command = [sys.executable, "-m", "pitlm.cli.main", "run", cli.recipe, "--data", source, "--out", cli.out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = f"Error: {source}:3: field 'chosen': found a number (3), expected a string, or a list of messages"
    assert done.stderr.startswith(expected)
    assert len(done.stderr.splitlines()) == 1
    assert not cli.out.exists()
