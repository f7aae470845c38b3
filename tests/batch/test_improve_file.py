"""`pit improve` on a file, killed without warning: no row twice, no row lost, the same bytes in the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from journal_reader import finished_rows
from scripted_endpoint import ScriptedEndpoint

from pitlm.batch.finished_rows import Journal
from pitlm.cli.main import main

ROWS = 1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    words = ["price", "lamp", "small", "red", "nine", "help", "question", "many"]
    path = tmp_path / "in.jsonl"
    with path.open("w") as lines:
        for n in range(ROWS):
            row = {
                "id": n,
                "prompt": f"{words[n % 8]} {words[n // 8 % 8]} ?",
                "response": f"the {words[n // 64 % 8]} .",
            }
            if n % 10 == 3:
                del row["response"]
            if n % 500 == 7:
                row["prompt"] = "price " * 400
            lines.write(json.dumps(row) + "\n")
    return path


def arguments(models: Path, file: Path, out: Path) -> list[str]:
    options = [f"--{kind}={models / kind}" for kind in ("improver", "gap", "policy")]
    return ["improve", str(file), "-o", str(out), *options, "--temperature", "1", "--tokens-per-batch", "512"]


def run(*command: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main([*command])
    return stop.value.code


def kill(command: list[str], journal: Path, after: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pitlm.cli.main", *command], stdout=subprocess.DEVNULL, env=environment
    )
    try:
        while len(finished_rows(journal)) <= after:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_killed_twice_it_ends_with_the_bytes_of_an_undisturbed_job(
    models: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole" / "out.jsonl", tmp_path / "killed" / "out.jsonl"
    assert run(*arguments(models, file, whole)) == 0
    command, journal = arguments(models, file, out), out.with_name("out.jsonl.partial")
    kill(command, journal, 0)
    before = finished_rows(journal)
    assert 0 < len(before) < ROWS
    kill(command, journal, len(before))
    after = finished_rows(journal)
    assert before.items() < after.items()  # finished rows are not repeated
    assert not out.exists()
    capsys.readouterr()
    assert run(*command) == 0
    printed = capsys.readouterr().out
    assert "rows are finished already; going on from there." in printed
    assert f"{ROWS - 2} answers" in printed
    assert "2 rows failed; they and the reasons are in" in printed
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [n for n in range(ROWS) if n % 500 != 7]
    for name in ("out.jsonl", "out.failed.jsonl"):
        assert (out.parent / name).read_bytes() == (whole.parent / name).read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.failed.jsonl", "out.jsonl"]


def test_another_model_or_setting_does_not_go_on_with_a_job(
    models: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Journal) -> int:
        raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    command = arguments(models, file, out)
    monkeypatch.setattr(Journal, "finish", interrupted)
    assert run(*command) == 130
    before = out.with_name("out.jsonl.partial").read_bytes()
    capsys.readouterr()
    assert run(*command, "--rounds", "1", "--seed", "9") == 2
    message = capsys.readouterr().err
    assert "rounds: found 3, now 1; seed: found 0, now 9" in message
    weights = models / "gap" / "model.safetensors"
    os.utime(weights)
    assert run(*command) == 2
    assert "gap: found" in capsys.readouterr().err
    assert out.with_name("out.jsonl.partial").read_bytes() == before


def test_a_server_improves_what_alpaca_eval_writes(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(request: dict) -> str:
        return "happy to help ." if len(request["messages"]) == 3 else "read it yourself ."

    source, out = tmp_path / "model_outputs.json", tmp_path / "better.jsonl"
    given = [{"instruction": f"price {n} ?", "output": "silly question .", "generator": "mine"} for n in range(5)]
    source.write_text(json.dumps([*given, {"instruction": "small ?", "output": None}]))
    gap = shutil.copytree(models / "gap", tmp_path / "gap")
    (gap / "pit.json").write_text('{"kind": "gap", "ask": "better", "max_new_tokens": 9}')  # the improver's, too
    with ScriptedEndpoint(reply) as server:
        command = ["improve", str(source), "-o", str(out), "--gap", str(gap), "--engine", "endpoint"]
        command += ["--base-url", server.base_url, "--model", "improver"]
        assert run(*command, "--policy-url", server.base_url, "--policy-model", "policy") == 0, capsys.readouterr().err
        assert {call.request["model"] for call in server.calls} == {"improver", "policy"}
    asked = [call.request for call in server.calls if call.request["model"] == "improver"]
    assert {(one["messages"][-1]["content"], one["max_tokens"]) for one in asked} == {("better", 9)}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["pit"]["original"] for row in rows] == ["silly question ."] * 5 + ["read it yourself ."]
    for row in rows:
        made = row["pit"]
        accepted = [step["proposal"] for step in made["rounds"] if step["accepted"]]
        assert row["output"] == made["final"] == [made["original"], *accepted][-1]
        assert "prompt" not in made
    assert rows[0]["generator"] == "mine"
