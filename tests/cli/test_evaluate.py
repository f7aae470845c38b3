"""`pit evaluate` at the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pitlm.cli.main import load_verb
from pitlm.core.errors import InputError
from pitlm.core.verdicts import Verdict, VerdictRow


def run(*arguments: object) -> Result:
    return CliRunner().invoke(load_verb("evaluate"), [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture
def verdicts(tmp_path: Path) -> Path:
    path = tmp_path / "verdicts.jsonl"
    with path.open("w") as file:
        for judge in ("red", "blue [b]"):
            for n in range(20):
                for system, wins in {"one [/x]": 15, "two": 10, "three": 4}.items():
                    straight = "win" if n < wins else "loss"
                    swapped = straight if n % 5 else "win"
                    verdict = straight if straight == swapped else "inconsistent"
                    replies = [{"swapped": False, "verdict": straight}, {"swapped": True, "verdict": swapped}]
                    row = {"item": f"{n}", "first": system, "second": "original", "verdict": verdict, "judge": judge}
                    file.write(json.dumps({**row, "replies": replies, "lengths": [n * 7 % 11, 5]}) + "\n")
    return path


def test_tables_figures_and_annotations(verdicts: Path, tmp_path: Path):
    figures, alpaca = tmp_path / "out" / "figures.json", tmp_path / "out" / "annotations.json"
    output = done(verdicts, "--json", figures, "--alpaca", alpaca, "--resamples", 50, "--plan", 20)
    for words in (
        "120 verdicts on 20 items", "Against original, judged by blue [b]", "one [/x]", "blue [b]", "Between systems", "Ranking, judged by red",
        "Bradley-Terry", "Elo", "Position (both orders)", "Cohen's kappa: blue [b], red", "1.000 [1.000, 1.000]",
        "120 annotations written",
    ):  # fmt: skip
        assert words in output
    found = json.loads(figures.read_text())
    [line] = [s for s in found["systems"] if (s["judge"], s["system"]) == ("red", "two")]
    assert line["tally"] == {"win": 10, "tie": 0, "loss": 8, "inconsistent": 2, "unparsable": 0}
    assert line["delta"]["estimate"] == pytest.approx(0.1)
    assert line["alpaca"]["win_rate"] == pytest.approx(55)
    assert line["items_needed"] > 0
    again = tmp_path / "again.json"
    done(alpaca, "--json", again, "--resamples", 50)
    assert [s["delta"] for s in json.loads(again.read_text())["systems"]] == [s["delta"] for s in found["systems"]]


def test_the_same_seed_gives_the_same_figures(verdicts: Path, tmp_path: Path):
    texts = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        done(verdicts, "--json", tmp_path / name, "--resamples", 50, "--seed", seed)
        texts.append(json.loads((tmp_path / name).read_text())["rankings"])
    assert texts[0] == texts[1] != texts[2]


def test_several_files_are_one(verdicts: Path, tmp_path: Path):
    lines = verdicts.read_text().splitlines(keepends=True)
    halves = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for half, part in zip(halves, (lines[:50], lines[50:]), strict=True):
        half.write_text("".join(part))
    assert done(*halves, "--resamples", 50) == done(verdicts, "--resamples", 50)


def test_baseline_by_name(verdicts: Path):
    assert "Against two" in done(verdicts, "--baseline", "two", "--resamples", 20)
    result = run(verdicts, "--baseline", "too")
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == "--baseline: found 'too', expected one of one [/x], original, three, two"


def test_many_systems_are_a_leaderboard_and_a_page(tmp_path: Path):
    rows = [
        VerdictRow(f"{item}", f"s{n:02}", "base", Verdict.WIN if (item * n) % 7 < 3 else Verdict.LOSS)
        for n in range(1, 13)
        for item in range(30)
    ]
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps(row.as_dict()) + "\n" for row in rows))
    output = done(file, "--html", tmp_path / "page.html", "--resamples", 20)
    assert "66 differences between systems: --differences, --json and --html show them." in output
    assert "Between systems" not in output
    assert f"Page written to {tmp_path / 'page.html'}" in output
    assert "Each system against each other" in (tmp_path / "page.html").read_text()
    assert "Between systems" in done(file, "--differences", "--resamples", 20)


def test_labels_say_how_often_a_judge_is_right(verdicts: Path, tmp_path: Path):
    (tmp_path / "votes.jsonl").write_text(verdicts.read_text() + "\n")
    assert "a SOURCE, expected labels from elsewhere" in run(verdicts, "--labels", verdicts).output
    output = done(verdicts, "--labels", tmp_path / "votes.jsonl", "--json", tmp_path / "f.json", "--resamples", 20)
    assert "Against labels" in output
    figures = json.loads((tmp_path / "f.json").read_text())["labels"]
    assert [one["judge"] for one in figures] == ["blue [b]", "red"]
    (tmp_path / "other.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "bb"}\n')
    assert "found no label for any verdict" in str(run(verdicts, "--labels", tmp_path / "other.jsonl").exception)


def test_what_a_plan_without_a_file_would_ignore_is_refused(tmp_path: Path):
    for more in (("--json", tmp_path / "x"), ("--html", tmp_path / "x"), ("--baseline", "y"), ("--rank",)):
        result = run("--plan", 5, *more)
        assert (result.exit_code, "expected --plan alone, or a SOURCE" in result.output) == (2, True)


def test_a_plan_needs_no_file():
    # Connor (1987), for the test that is not exact: (1.96 + 0.8416)^2 / 0.05^2 is 3,140; the exact one needs a little more.
    output = done("--plan", 5)
    assert "Delta of 5 points" in output
    assert "0% ties or inconsistent  3,190" in output
    assert "50% ties or inconsistent  not possible" in done("--plan", 60)


def test_neither_file_nor_plan_is_a_usage_error():
    result = run()
    assert result.exit_code == 2
    assert "expected at least one, or --plan POINTS" in result.output


def test_what_never_lost_is_said(tmp_path: Path):
    path = tmp_path / "wins.jsonl"
    row = {"first": "a", "second": "b", "verdict": "win"}
    path.write_text("".join(json.dumps({**row, "item": str(n)}) + "\n" for n in range(5)))
    assert "no finite estimate" in " ".join(done(path, "--rank", "--resamples", 20).split())


def test_bad_lines_end_with_code_2_and_leave_nothing(verdicts: Path, tmp_path: Path):
    verdicts.write_text(verdicts.read_text() + '{"item": "x"}\n')
    command = [sys.executable, "-m", "pitlm.cli.main", "evaluate", verdicts, "--json", tmp_path / "figures.json"]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert f"Error: {verdicts}:121: found an object with the fields item, expected a verdict row" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "figures.json").exists()


def test_help_has_examples_and_imports_nothing_heavy():
    assert "pit evaluate verdicts.jsonl" in done("--help")
    check = "import sys, pitlm.cli.evaluate; print([m for m in ('torch', 'scipy', 'rich', 'statsmodels') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
