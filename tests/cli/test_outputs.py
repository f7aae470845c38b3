"""No verb replaces a file that it was not told to replace, and none replaces its own input."""

from __future__ import annotations

import os
import re

import click
import pytest

from pitlm.cli.main import VERBS, load_verb

HOWS = {
    ("doctor", "--json"): "doctor quickstart --json {out}",
    ("calibrate", "--json"): "calibrate --run {tmp}/run --prompts {input} --json {out}",
    ("reproduce", "--json"): "reproduce judges --json {out}",
    ("reproduce", "--page"): "reproduce judges --page {out}",
    ("inspect", "--json"): "data inspect {input} --json {out}",
    ("evaluate", "--json"): "evaluate {input} --json {out}",
    ("evaluate", "--html"): "evaluate {input} --html {out}",
    ("evaluate", "--alpaca"): "evaluate {input} --alpaca {out}",
    ("evaluate", "--output"): "evaluate {input} {other} --judge reward --model {tmp}/model -o {out}",
    ("judge", "--output"): "judge {input} {other} --judge reward --model {tmp}/model -o {out}",
    ("improve", "--output"): "improve {input} --run {tmp}/run -o {out}",
    ("rate", "--export"): "rate --votes {input} --export {out}",
}
"""One command for each option that names a file to write."""


def commands():
    for name in VERBS:
        verb = load_verb(name)
        yield from verb.commands.values() if isinstance(verb, click.Group) else [verb]


def test_every_option_that_names_a_file_to_write_is_in_this_test():
    found = {
        (command.name, option.opts[-1])
        for command in commands()
        for option in command.params
        if re.search(r"[Ww]rite.* to this file|[Ff]ile for the|Also write", getattr(option, "help", None) or "")
    }
    assert found == set(HOWS)


@pytest.fixture
def refused(cli, tmp_path):
    """Run a command, which has to be refused and to leave all files as they are; return the message."""

    def run(how, out, *more):
        for name in ("input.jsonl", "other.jsonl", "out.json"):
            if not (tmp_path / name).exists():
                (tmp_path / name).write_text(f'{{"prompt": "{name}", "response": "b"}}\n')
        before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        places = {"tmp": tmp_path, "input": tmp_path / "input.jsonl", "other": tmp_path / "other.jsonl", "out": out}
        message = cli.refused(*(part.format(**places) for part in how.split()), *more)
        assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
        return message

    return run


@pytest.mark.parametrize("how", HOWS.values())
def test_an_output_that_exists_is_kept(refused, tmp_path, how):
    assert f"{tmp_path / 'out.json'}: exists already" in refused(how, tmp_path / "out.json")


@pytest.mark.parametrize("how", [how for how in HOWS.values() if "{input}" in how])
def test_the_input_is_kept_even_if_outputs_may_be_replaced(refused, tmp_path, how):
    assert "found the same file twice" in refused(how, tmp_path / "input.jsonl", "--force")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "input.jsonl")
    assert "found the same file twice" in refused(how, tmp_path / "link.jsonl", "--force")


@pytest.mark.parametrize("how", HOWS.values())
def test_a_pipe_a_device_and_a_folder_are_no_output(refused, tmp_path, how):
    os.mkfifo(tmp_path / "pipe")
    for out in (tmp_path / "pipe", "/dev/null"):
        assert f"{out}: found a device or a pipe" in refused(how, out, "--force")
    message = refused(how, tmp_path, "--force")
    assert "found a folder" in message or "is a directory" in message


def test_two_outputs_of_one_command_are_two_files(refused, tmp_path):
    how = "evaluate {input} --json {out} --alpaca {out}"
    assert "found the same file twice" in refused(how, tmp_path / "new.json")


def test_the_failed_rows_of_an_earlier_job_are_an_input_that_is_kept(refused, tmp_path):
    """`pit improve` writes rows that fail to OUT.failed.jsonl."""
    (tmp_path / "out.failed.jsonl").write_text('{"prompt": "p", "response": "b"}\n')
    how = "improve {tmp}/out.failed.jsonl --run {tmp}/run -o {out}"
    assert "found the file that failed rows go to" in refused(how, tmp_path / "out.jsonl")


def test_a_file_in_the_place_of_the_failed_rows_is_kept(refused, tmp_path):
    (tmp_path / "new.failed.jsonl").write_text("somebody's file")
    assert f"{tmp_path / 'new.failed.jsonl'}: exists already" in refused(
        HOWS["improve", "--output"], tmp_path / "new.jsonl"
    )


@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
def test_the_files_that_sqlite_keeps_beside_a_database_are_no_output(refused, tmp_path, end):
    (tmp_path / f"input.jsonl{end}").write_text("a part of the votes")
    message = refused(HOWS["rate", "--export"], tmp_path / f"input.jsonl{end}", "--force")
    assert "found the same file twice" in message


@pytest.mark.parametrize("how", [HOWS["evaluate", "--json"], HOWS["judge", "--output"], HOWS["improve", "--output"]])
def test_a_file_in_an_input_folder_is_kept(refused, tmp_path, how):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text('{"prompt": "p", "response": "b"}\n')
    message = refused(how.replace("{input}", "{tmp}/folder"), tmp_path / "folder" / "a.jsonl", "--force")
    assert "found a file of the input" in message
    assert (tmp_path / "folder" / "a.jsonl").read_text().startswith('{"prompt"')


@pytest.mark.parametrize("more", [(), ("--force",), ("--skip-invalid",)])
def test_folds_replace_neither_their_source_nor_another_file(refused, tmp_path, more):
    folder = tmp_path / "folds"
    folder.mkdir()
    for name in ("rejects.jsonl", "sft.jsonl"):
        (folder / name).write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 3)
        refused(f"data prepare {folder / name} --out {{out}}", folder, *more)
        assert len((folder / name).read_text().splitlines()) == 3
