"""`pit improve`: rows, models and options at fault; sound rows are improved whatever stands beside them."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import GOOD, Cli, chat, lines


@pytest.fixture(scope="module")
def models(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained improver and gap model for the pocket world."""
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
        ["{at}:2: field 'prompt': found a conversation that ends on 'assistant'"],
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
    else:  # no row could be improved: treated as bad input
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
