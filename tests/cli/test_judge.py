"""`pit judge` at the command line: from files to verdicts, killed in the middle and continued."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from scripted_endpoint import Fail, Say, ScriptedEndpoint, Stall

from pitlm.cli.judge import judge_options
from pitlm.cli.main import ENVIRONMENT, main
from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.verdicts import VerdictRow

PROMPTS = [f"question {index}" for index in range(12)]


def write(path, answers, prompts=PROMPTS):
    rows = [{"instruction": p, "output": a, "generator": path.stem} for p, a in zip(prompts, answers, strict=True)]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def files(tmp_path):
    """Our answer is better everywhere except in the last two."""
    ours = [f"good answer {index}" for index in range(10)] + ["bad answer"] * 2
    theirs = [f"bad answer {index}" for index in range(10)] + ["good answer"] * 2
    return write(tmp_path / "ours.json", ours), write(tmp_path / "theirs.json", theirs)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ENVIRONMENT:  # main() sets these for the process; restore the old values
        monkeypatch.setenv(name, os.environ.get(name, ENVIRONMENT[name]))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def server():
    with ScriptedEndpoint(honest) as server:
        yield server


def honest(request):
    text = request["messages"][-1]["content"]
    return "Verdict: A" if text.index("good answer") < text.index("bad answer") else "Verdict: B"


def pit_judge(files, *options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["judge", *map(str, files), *map(str, options)])
    shown = capsys.readouterr()
    return stop.value.code, shown.out, shown.err


def llm(server, output, *more):
    return ["-o", output, "--judge", "llm", "--model", "m", "--base-url", server.base_url, *more]


def read(path):
    return [VerdictRow.from_dict(json.loads(line)) for line in path.read_text().splitlines()]


def test_two_files_and_a_model_give_verdicts_and_a_tally(server, files, tmp_path, capsys):
    output = tmp_path / "verdicts.jsonl"
    code, out, err = pit_judge(files, *llm(server, output, "--price", "1,1,1"), capsys=capsys)
    assert (code, err) == (0, "")
    assert (
        "ours against theirs, 12 pairs, judge m: "
        "win 10 (83.3%), tie 0 (0.0%), loss 2 (16.7%), inconsistent 0 (0.0%), unparsable 0 (0.0%)"
    ) in out
    assert "24 calls, cost 0.00" in out
    assert [str(row.verdict) for row in read(output)] == ["win"] * 10 + ["loss"] * 2
    assert {len(row.replies) for row in read(output)} == {2}
    assert sum(reply.cost for row in read(output) for reply in row.replies) > 0


def test_again_pays_nothing_and_replaces_nothing_unasked(server, files, tmp_path, capsys):
    output = tmp_path / "verdicts.jsonl"
    pit_judge(files, *llm(server, output), capsys=capsys)
    before = output.read_bytes()
    code, _, err = pit_judge(files, *llm(server, output), capsys=capsys)
    assert (code, output.read_bytes()) == (2, before)
    assert "--force" in err
    code, out, _ = pit_judge(files, *llm(server, output, "--force"), capsys=capsys)
    assert (code, output.read_bytes(), len(server.calls)) == (0, before, 24)
    assert "0 calls, 24 replies from the cache" in out


def test_the_cost_limit_ends_with_code_3_and_no_file(server, files, tmp_path, capsys):
    output = tmp_path / "verdicts.jsonl"
    server.reply = lambda request: Say(honest(request), input_tokens=1_000_000, output_tokens=0)
    options = llm(server, output, "--price", "1,0,0", "--max-cost", "20", "--concurrency", "2")
    code, _, err = pit_judge(files, *options, capsys=capsys)
    assert code == 3
    assert "of 12 pairs are judged" in err
    assert not output.exists()
    code, _, _ = pit_judge(files, *options, capsys=capsys)
    assert (code, len(server.calls), len(read(output))) == (0, 24, 12)


def test_failed_calls_are_told_and_asked_for_again(server, files, tmp_path, capsys):
    output = tmp_path / "verdicts.jsonl"
    server.reply = lambda request: (
        Fail(400, message="no") if "question 3\n" in str(request["messages"][-1]["content"]) else honest(request)
    )
    code, out, _ = pit_judge(files, *llm(server, output), capsys=capsys)
    assert code == 0
    assert "unparsable 1 (8.3%)" in out
    assert "2 calls failed" in out
    server.reply = honest
    _, out, _ = pit_judge(files, *llm(server, output, "--force"), capsys=capsys)
    assert "unparsable 0" in out
    assert len(server.calls) == 26


def test_when_every_call_fails_there_is_no_file_and_the_exit_code_says_so(server, files, tmp_path, capsys):
    output = tmp_path / "verdicts.jsonl"
    server.reply = lambda request: Fail(400, message="no such deployment")
    code, _, err = pit_judge(files, *llm(server, output), capsys=capsys)
    assert (code, output.exists()) == (2, False)
    assert "found 24 calls that all failed, expected replies. The first: " in err
    assert "no such deployment" in err


def stored(cache):
    if not cache.exists():
        return 0
    with closing(sqlite3.connect(cache, timeout=5)) as database:
        try:
            return database.execute("SELECT COUNT(*) FROM replies").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def test_killed_in_the_middle_it_goes_on_and_pays_for_nothing_twice(server, files, tmp_path, capsys):
    output, cache = tmp_path / "verdicts.jsonl", tmp_path / "replies.sqlite"
    options = llm(server, output, "--cache", cache, "--concurrency", "2")
    # The server answers nine calls. Later calls hang until it closes.
    numbers = itertools.count(1)
    server.reply = lambda request: honest(request) if next(numbers) <= 9 else Stall(3600)
    command = [sys.executable, "-m", "pitlm.cli.main", "judge", *map(str, files), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while stored(cache) < 9 or len(server.calls) < 11:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
    assert len(server.answered) == stored(cache) == 9
    assert not output.exists()
    server.reply = honest
    code, out, _ = pit_judge(files, *options, capsys=capsys)
    assert code == 0
    assert "15 calls, 9 replies from the cache" in out
    bought = [call.text for call in server.answered]
    assert len(bought) == len(set(bought)) == 24
    assert [str(row.verdict) for row in read(output)] == ["win"] * 10 + ["loss"] * 2


def test_the_oracle_judges_worlds_with_a_known_truth_alone(tmp_path, files, capsys):
    prompts = ["lamp : price nine color red size small . price ?"] * 2
    first = write(tmp_path / "first.json", ["price nine .", "price twelve ."], prompts)
    second = write(tmp_path / "second.json", ["silly question . price nine .", "happy to help . price nine ."], prompts)
    output = tmp_path / "verdicts.jsonl"
    code, _, _ = pit_judge((first, second), "-o", output, "--judge", "oracle", capsys=capsys)
    assert code == 0
    # by hand: right +1, wrong -1, rude -1, courtesy +0.5
    assert [(row.scores, str(row.verdict)) for row in read(output)] == [((1.0, 0.0), "win"), ((-1.0, 1.5), "loss")]
    code, _, err = pit_judge(files, "-o", tmp_path / "other.jsonl", "--judge", "oracle", capsys=capsys)
    assert code == 2
    assert "prompts of one world with a known truth" in err


def test_replies_from_elsewhere_are_judged_by(files, tmp_path, capsys):
    replies = tmp_path / "replies.jsonl"
    replies.write_text('"Verdict: A"\n"Verdict: B"\n' * 11 + '"Verdict: A"\n"Verdict: A"\n')
    output = tmp_path / "verdicts.jsonl"
    code, out, _ = pit_judge(files, "-o", output, "--judge", "scripted", "--model", replies, capsys=capsys)
    assert code == 0
    assert "win 11 (91.7%)" in out
    assert "inconsistent 1 (8.3%)" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--judge", "llm"], "--model: found nothing"),
        (["--judge", "llm", "--model", "m"], "OPENAI_API_KEY"),
        (["--judge", "llm", "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--price", "1"], "three numbers"),
        (["--judge", "llm", "--model", "m", "--base-url", "x", "--template", "nowhere.txt"], "nowhere.txt"),
        (["--judge", "llm", "--model", "m", "--body", "[1]"], "expected a JSON object"),
        (["--judge", "oracle", "--price", "1,1,1"], "--price: found beside --judge oracle"),
        (["--judge", "scripted", "--model", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--judge", "nobody"], "nobody"),
    ],
)
def test_what_the_user_can_mend_is_one_message(options, words, files, tmp_path, capsys):
    code, _, err = pit_judge(files, "-o", tmp_path / "verdicts.jsonl", *options, capsys=capsys)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_files_that_do_not_match_are_told_before_anything_is_asked(server, files, tmp_path, capsys):
    other = write(tmp_path / "other.json", ["x"], ["another question"])
    code, _, err = pit_judge((files[0], other), *llm(server, tmp_path / "v.jsonl"), capsys=capsys)
    assert code == 2
    assert "found 12 of 12 answers with no counterpart" in err
    assert server.calls == []


def test_other_verbs_can_have_the_same_options():
    @click.command()
    @click.option("--seed", default=0)
    @judge_options(required=False)
    def verb(seed, options):
        click.echo(repr((seed, options)))

    def said(*arguments):
        return CliRunner().invoke(verb, arguments).output.strip()

    assert said("--seed", "5") == "(5, None)"
    expected = JudgeSection(
        kind="llm", model="m", temperature=0.5, seed=3, body={"top_p": 0.5}, cache=Path("c"), retry_unparsable=2
    )
    given = [
        "--judge",
        "llm",
        "--model",
        "m",
        "--temperature",
        "0.5",
        "--judge-seed",
        "3",
        "--cache",
        "c",
        "--retry-unparsable",
        "2",
        "--body",
    ]
    assert said(*given, '{"top_p": 0.5}') == repr((0, expected))
    assert said("--judge", "oracle") == repr((0, JudgeSection(kind="truth")))  # both places have the same defaults


def test_asking_an_endpoint_needs_no_torch():
    script = (
        "import sys, pitlm.run.judges, pitlm.cli.judge; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_evaluate_judges_two_files_first_and_goes_on_where_it_was_cut_off(tmp_path, files, capsys):
    verdicts, figures, alpaca = tmp_path / "verdicts.jsonl", tmp_path / "figures.json", tmp_path / "annotations.json"
    command = ["evaluate", *map(str, files), "--judge", "llm", "--model", "m", "-o", str(verdicts), "--seed", "1"]
    more = ["--json", str(figures), "--alpaca", str(alpaca), "--resamples", "50"]
    with ScriptedEndpoint(lambda request: honest(request) if len(server.calls) <= 9 else Fail(401)) as server:
        assert call(*command, "--base-url", server.base_url, "--concurrency", "1", *more) == 2
        assert not verdicts.exists()
        paid = len(server.answered)
        server.reply = honest
        assert call(*command, "--base-url", server.base_url, *more) == 0
        assert paid == 9
        assert len(server.answered) == 24
    output = capsys.readouterr().out
    assert "Against theirs, judged by m" in output
    assert "Position (both orders)" in output
    [line] = json.loads(figures.read_text())["systems"]
    assert line["tally"] == {"win": 10, "tie": 0, "loss": 2, "inconsistent": 0, "unparsable": 0}
    first = json.loads(alpaca.read_text())[0]
    assert (first["instruction"], first["output_1"], first["output_2"]) == (PROMPTS[0], "bad answer 0", "good answer 0")
    assert (first["generator_2"], first["preference"]) == ("ours", 2.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["a"], "expected two"), (["a", "b"], "expected the file that the verdicts go to"), ([], "found no SOURCE")],
)
def test_evaluate_with_a_judge_wants_two_files_and_an_output(tmp_path, capsys, arguments, words):
    for name in "ab":
        (tmp_path / name).touch()
    assert call("evaluate", *(str(tmp_path / name) for name in arguments), "--judge", "oracle") == 2
    assert words in capsys.readouterr().err
