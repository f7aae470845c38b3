"""A package outside pitlm adds a judge and a statistic, and the command line shows both."""

from __future__ import annotations

import json
import os
import re
from functools import partial

import pytest
from tiny_run import Shell

JUDGE = '''
from pitlm.judge.llm import ScriptedJudge


def coin(section):
    """Says A whatever is shown, unless a seed is given: then B."""
    return ScriptedJudge(lambda shown: [f"Verdict: {'A' if section.seed is None else 'B'}"] * len(shown), "coin")


def shares(rows, *, resamples, confidence, seed):
    from pitlm.core.verdicts import Verdict
    from pitlm.evaluate.statistics import mean_interval

    how = {"resamples": resamples, "confidence": confidence, "seed": seed}
    return {str(v): mean_interval([float(row.verdict is v) for row in rows], confidence=how["confidence"]) for v in Verdict}
'''
ENTRY_POINTS = "[pitlm.judges]\ncoin = toys:coin\n[pitlm.statistics]\nshares = toys:shares\n"


@pytest.fixture
def pit(tmp_path):
    """Calls `pit` in a process that sees the package: the options of a verb are fixed when its module is loaded."""
    package, answers = tmp_path / "package", tmp_path / "answers"
    metadata = package / "toys-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (package / "toys.py").write_text(JUDGE)
    answers.mkdir()
    for name, words in (("ours", ["same", "longer"]), ("theirs", ["same", "short"])):
        rows = [{"prompt": f"question {n}", "response": word} for n, word in enumerate(words)]
        (answers / f"{name}.json").write_text(json.dumps(rows))
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    return partial(Shell(answers).process, PYTHONPATH=path)


def test_a_judge_and_a_statistic_of_another_package_work_from_the_command_line(pit, tmp_path):
    done = pit("judge", "ours.json", "theirs.json", "-o", "verdicts.jsonl", "--judge", "coin")
    assert done.returncode == 0, done.stderr
    # Always A: each pair is won in one order and lost in the other.
    assert "ours against theirs, 2 pairs, judge coin: win 0 (0.0%)" in done.stdout
    assert "inconsistent 2 (100.0%)" in done.stdout

    done = pit("evaluate", "verdicts.jsonl", "--json", "figures.json", "--resamples", "20")
    assert done.returncode == 0, done.stderr
    assert "Against theirs, judged by coin" in done.stdout
    table = done.stdout[done.stdout.index("\nshares\n") :]
    assert re.search(r"inconsistent +│ +1\.000 \[1\.000, 1\.000\]", table)
    assert re.search(r"win +│ +0\.000 \[0\.000, 0\.000\]", table)
    figures = json.loads((tmp_path / "answers" / "figures.json").read_text())
    assert figures["shares"]["inconsistent"]["estimate"] == 1.0
    assert figures["position"][0]["judge"] == "coin"


def test_the_judge_of_another_package_gets_its_options_and_is_named_in_messages(pit):
    done = pit("evaluate", "ours.json", "theirs.json", "-o", "v.jsonl", "--judge", "coin", "--judge-seed", "1")
    assert done.returncode == 0, done.stderr
    assert "second both times" in done.stdout
    assert re.search(r"coin +│ +2 │ +0\.0 \[.*\] │ -100\.0 \[.*\] │ +0 │ +2 │", done.stdout)
    refused = pit("judge", "ours.json", "theirs.json", "-o", "w.jsonl", "--judge", "dice")
    assert refused.returncode == 2
    assert "'coin'" in refused.stderr
