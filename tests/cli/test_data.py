"""`pit data` at the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pitlm.cli.data import data
from pitlm.core.errors import InputError
from pitlm.data.folds import FOLDS, read_folds


def run(*arguments: object) -> Result:
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"question {n}", "chosen": f"yes [bold]{n}[/nope]", "rejected": "no"} for n in range(40)]
    rows.append({"prompt": "question", "chosen": "same", "rejected": "same"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_inspect_shows_counts_bias_and_samples(source: Path) -> None:
    output = done("inspect", source, "--samples", 2)
    assert "Read 41 rows: 40 kept, 1 dropped (equal responses)" in output
    assert "Length in words" in output
    assert "100.0%" in output
    assert "of 40 pairs" in output
    assert output.count("chosen: yes [bold]") == 2  # the brackets belong to the data and are no markup
    assert "Sample 2" in output
    assert "Sample 3" not in output


def test_samples_are_clipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "z" * 5000, "rejected": "n"}))
    assert done("inspect", path).count("z") == 300
    assert "zzz" not in done("inspect", path, "--samples", 0)


def test_inspect_writes_figures(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "figures.json"
    assert str(out) in done("inspect", source, "--json", out).replace("\n", "")
    figures = json.loads(out.read_text())
    assert (figures["read"], figures["kept"], figures["equal_responses"]) == (41, 40, 1)


def test_inspect_shows_what_a_bag_of_words_gets_right(source: Path, tmp_path: Path) -> None:
    output = done("inspect", source, "--floor", "--json", tmp_path / "figures.json")
    assert "a bag of words is right on" in output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["floor"]["estimate"] == 1.0  # "yes" always wins
    assert "bag of words" not in done("inspect", source)


def test_prepare_writes_folds_that_read_back(source: Path, tmp_path: Path) -> None:
    output = done("prepare", source, "--out", tmp_path / "out", "--test", 8, "--validation", "0.2")
    folds = read_folds(tmp_path / "out")
    assert sum(len(pairs) for pairs in folds.values()) == 40
    assert len(folds["test"]) == 8
    assert all(fold in output for fold in FOLDS)
    assert not (tmp_path / "out" / "rejects.jsonl").exists()
    assert "40 kept" in done("inspect", tmp_path / "out")  # a prepared folder is a source too


def test_prepare_keeps_what_is_there_unless_forced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    result = run("prepare", source, "--out", out)
    assert isinstance(result.exception, InputError)
    assert str(out) in str(result.exception)
    assert "--force" in str(result.exception)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    done("prepare", source, "--out", out, "--force")
    assert (out / "notes.txt").read_text() == "mine"
    assert read_folds(out)


def test_prepare_puts_invalid_rows_aside_when_told(source: Path, tmp_path: Path) -> None:
    source.write_text(source.read_text() + '{"prompt": "q"}\n')
    out = tmp_path / "out"
    stopped = run("prepare", source, "--out", out)
    assert isinstance(stopped.exception, InputError)
    assert f"{source}:42: field 'chosen': found no such field" in str(stopped.exception)
    output = done("prepare", source, "--out", out, "--skip-invalid")
    assert "1 invalid" in output
    [reject] = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert (reject["line"], reject["row"]) == (42, {"prompt": "q"})


def test_prepare_does_not_write_where_it_reads(source: Path) -> None:
    result = run("prepare", source.parent, "--out", source.parent / "folds")
    assert isinstance(result.exception, InputError)
    assert "inside the source" in str(result.exception)


def test_prepare_does_not_replace_a_file(source: Path) -> None:
    result = run("prepare", source, "--out", source, "--force")
    assert isinstance(result.exception, InputError)
    assert "expected a folder" in str(result.exception)


def test_sizes_that_are_none_are_usage_errors(source: Path, tmp_path: Path) -> None:
    result = run("prepare", source, "--out", tmp_path / "out", "--test", "many")
    assert result.exit_code == 2
    assert "found 'many', expected a share such as 0.1" in " ".join(result.output.split())


@pytest.mark.parametrize("verb", ["inspect", "prepare"])
def test_help_has_examples(verb: str) -> None:
    assert f"pit data {verb} pairs.jsonl" in done(verb, "--help")


def test_help_imports_nothing_heavy() -> None:
    check = "import sys, pitlm.cli.data; print([m for m in ('torch', 'scipy', 'rich', 'datasets') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
