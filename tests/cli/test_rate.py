"""The real command `pit rate`: serving, voting, ending, exporting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pitlm.cli.main import main
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Verdict, VerdictRow
from pitlm.judge.votes import Votes, ballots


def answers(path: Path, system: str) -> Path:
    rows = [{"prompt": f"question {i}", "response": f"{system} answers {i}"} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture
def voted(tmp_path):
    votes = Votes(tmp_path / "votes.sqlite")
    for item, choice in (("a", Verdict.WIN), ("b", Verdict.TIE)):
        comparison = Comparison(Prompt.of("x"), "yes", "no\u2028", item, ("ours", "theirs"))
        for rater in ("ada", "bob"):
            votes.add(ballots([comparison], rater, votes.seed)[0], rater, choice)
    return votes


def test_it_serves_until_interrupted_and_keeps_the_votes(tmp_path):
    votes = tmp_path / "votes.sqlite"
    files = [answers(tmp_path / f"{name}.jsonl", name) for name in ("zebra", "walrus")]
    command = [sys.executable, "-u", "-m", "pitlm.cli.main", "rate", *files, "--votes", votes, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stdout.readline().split()
            assert first[:-1] == ["3", "pairs", "of", "answers", "to", "rate", "at"]
            with httpx.Client(base_url=first[-1], timeout=600) as client:
                ballot = client.get("api/ballots", params={"rater": "ada"}).json()[0]["ballot"]
                shown = client.get(f"api/ballots/{ballot}", params={"rater": "ada"}).json()
                choice = "left" if shown["left"].startswith("zebra answers") else "right"
                body = {"rater": "ada", "ballot": ballot, "choice": choice, "seconds": 1}
                assert client.post("api/votes", json=body).status_code == 200
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert out.endswith(f"Stopped. Votes in {votes}: ada 1\n")
    (row,) = Votes(votes).rows()
    assert (row.first, row.second, row.verdict, row.judge) == ("zebra", "walrus", Verdict.WIN, "ada")


def test_exported_rows_are_those_of_the_votes(voted, tmp_path, capsys):
    out = tmp_path / "deep" / "verdicts.jsonl"
    with pytest.raises(SystemExit) as stop:
        main(["rate", "--votes", str(voted.path), "--export", str(out)])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"Verdicts written to {out}: ada 2, bob 2\n"
    assert [VerdictRow.from_dict(json.loads(line)) for line in out.read_text().split("\n")[:-1]] == voted.rows()
    assert "exists already" in refused(capsys, "rate", "--votes", voted.path, "--export", out)


def test_wrong_calls_say_what_is_expected(voted, tmp_path, capsys):
    before = voted.path.read_bytes()
    missing, text = tmp_path / "missing.sqlite", tmp_path / "text.sqlite"
    text.write_text("notes\n" * 1000)
    assert "FIRST and SECOND" in refused(capsys, "rate", "--votes", voted.path)
    assert "FIRST and SECOND" in refused(capsys, "rate", tmp_path / "a.jsonl", "--votes", voted.path)
    assert "no such file" in refused(capsys, "rate", "--votes", missing, "--export", tmp_path / "out.jsonl")
    assert not missing.exists()
    assert "file is not a database" in refused(capsys, "rate", "--votes", text, "--export", tmp_path / "out.jsonl")
    assert "beside FIRST" in refused(
        capsys, "rate", "a", "b", "--votes", voted.path, "--export", tmp_path / "out.jsonl"
    )
    assert not (tmp_path / "out.jsonl").exists()
    assert voted.path.read_bytes() == before


def test_without_the_web_server_s_packages_one_line_names_the_extra(tmp_path):
    script = f"""
import sys
sys.modules["fastapi"] = None
from pitlm.cli.main import main
main(["rate", {str(tmp_path / "a")!r}, {str(tmp_path / "b")!r}, "--votes", {str(tmp_path / "votes.sqlite")!r}])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: fastapi is not installed; this verb needs: pip install 'pitlm[serve]'\n"
