"""The whole method as a user runs it: one command, then its models from the shell and from Python."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pitlm.run.folder import stored_recipe
from pitlm.run.results import run_report, run_verdicts

STAGES = [
    "data", "policy-sft", "reward", "improver-sft", "gap", "rl-0-data", "rl-1-policy", "evaluation", "report",
]  # fmt: skip
PROMPT = "lamp : price nine color red size small . price ?"
RESPONSE = "silly question . price nine . well anyway ."
CHAT = [{"role": "user", "content": PROMPT}]


def test_a_run_prints_its_stages_and_what_it_found(tiny_run: Any) -> None:
    printed = tiny_run.output
    assert [line for line in printed.splitlines() if re.match(r"\[\d/9\]", line)] == [
        f"[{number}/9] {name}" for number, name in enumerate(STAGES, 1)
    ]
    for system in ("original", "SFT-only improver", "best-of-N with R_P", "PIT"):
        assert re.search(rf"│ {re.escape(system)} +│", printed)
    assert "Against the original answer, 16 held-out prompts, judge: true utility" in printed
    assert "Health of R_PIT" in printed
    for word in ("asked", "before", "after"):
        assert len(re.findall(rf"^  {word} ", printed, re.MULTILINE)) == 3
    assert re.search(r"PIT against the original answer: Delta [+-]\d+\.\d \[", printed)
    assert re.search(r"R_PIT picks the better of two fresh policy answers in \d+\.\d% \[.*chance is 50%", printed)
    assert re.search(r"9 of 9 stages run, \d+ s in all\. Report: runs/tiny/report\.html\n$", printed)


def test_the_second_time_nothing_runs(tiny_run: Any, shell: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.root.rglob("*.safetensors")}
    done = shell.process("run", tiny_run.recipe, "--out", tiny_run.root)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for number, name in enumerate(STAGES, 1):
        assert f"[{number}/9] {name} (done before)" in done.stdout
    assert "0 of 9 stages run" in done.stdout
    summary = tiny_run.output[tiny_run.output.index("Against the original") :].partition("9 of 9 stages")[0]
    assert summary in done.stdout  # it prints the same findings again
    assert {path: path.stat().st_mtime_ns for path in tiny_run.root.rglob("*.safetensors")} == before


def test_a_run_leaves_models_rows_and_settings(tiny_run: Any) -> None:
    root = tiny_run.root
    for stage in STAGES:
        assert json.loads((root / stage / "stage.json").read_text())["status"] == "done"
    for stage in STAGES[1:7]:
        assert (root / stage / "model" / "model.safetensors").is_file()
    assert not list(root.rglob(".*.tmp"))
    assert json.loads((root / "recipe.json").read_text())["name"] == "tiny"
    items = [json.loads(line) for line in (root / "evaluation" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 16
    assert {"PIT", "original"} <= set(items[0]["answers"])
    rows = [json.loads(line) for line in (root / "evaluation" / "verdicts.jsonl").read_text().splitlines()]
    assert {row["judge"] for row in rows} == {"true utility"}
    assert len(rows) == 16 * (len(items[0]["answers"]) - 1)  # each system once against the original


def test_every_statistic_of_a_run_is_had_from_its_folder(tiny_run: Any, shell: Any, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = shell("evaluate", tiny_run.root, "--json", figures, "--resamples", 100)
    assert done.returncode == 0, done.stderr
    for words in ("Against original, judged by true utility", "p Holm", "at equal lengths", "Between systems",
                  "Ranking, judged by true utility", "Bradley-Terry", "Elo", "gain / 100", "courtesy"):  # fmt: skip
        assert words in done.stdout
    # The table of the run has the same figures: they are computed from the same rows, by the same function.
    found = {line["system"]: line for line in json.loads(figures.read_text())["systems"]}
    for line in run_report(tiny_run.root, stored_recipe(tiny_run.root)).systems:
        plain = found[line.system]
        assert plain["answered"]["copy_rate"] == line.answered.copy_rate
        assert plain["quality"]["low"] == line.quality.low
        if line.system != "original":
            assert plain["delta"] == {
                name: getattr(line.delta, name) for name in ("estimate", "low", "high", "confidence")
            }
    # Another judge's verdicts on the same answers, beside those of the run.
    verdicts = tiny_run.root / "evaluation" / "verdicts.jsonl"
    other = tmp_path / "other.jsonl"
    other.write_text(verdicts.read_text().replace('"true utility"', '"twin"'))
    both = shell("evaluate", tiny_run.root, other, "--resamples", 50)
    assert both.returncode == 0, both.stderr
    assert re.search(r"Cohen's kappa: true utility, twin +│ 1\.000 \[1\.000, 1\.000\]", both.stdout)
    assert "Against original, judged by twin" in both.stdout
    twice = shell("evaluate", tiny_run.root, shutil.copytree(tiny_run.root, tmp_path / "copy"))
    assert (twice.returncode, "found a second run, expected one" in twice.stderr) == (2, True)
    empty = shell("evaluate", tmp_path)
    assert (empty.returncode, "found no recipe.json, expected the folder of a run" in empty.stderr) == (2, True)


class Links(HTMLParser):
    """Collects the links that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            fetches = name in ("src", "srcset", "data", "poster", "background") or (tag == "link" and name == "href")
            if fetches and value and not value.startswith("data:"):
                self.fetched.append(f"{tag} {value}")
        self.images += tag in ("img", "svg")


def test_the_report_is_one_self_contained_file(tiny_run: Any) -> None:
    text = (tiny_run.root / "report.html").read_text(encoding="utf-8")
    page = Links()
    page.feed(text)
    assert page.fetched == []
    assert page.images >= 4
    assert not re.search(r"@import|url\((?!['\"]?(data:|#))", text)
    assert "SFT-only improver" in text
    assert [path.name for path in tiny_run.root.iterdir() if path.suffix == ".html"] == ["report.html"]


def test_improving_one_answer_prints_each_round_and_why_it_stopped(tiny_run: Any, shell: Any) -> None:
    done = shell.process("improve", "--run", tiny_run.root, "--prompt", PROMPT, "--response", RESPONSE, "--rounds", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == f"original  {RESPONSE}"
    assert re.match(r"round 1   .* \(gap [+-]\d+\.\d\d, (accepted|rejected)\)", lines[1])
    assert any(line.startswith("final     ") for line in lines)
    assert re.match(r"stopped: (accepted-none|converged|rounds); \d+ tokens generated", lines[-1])


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    rows: list[dict[str, Any]] = [
        {
            "id": "first",
            "prompt": PROMPT,
            "response": RESPONSE,
            "final": "mine",
            "rounds": 2,
            "cost": "low",
            "tags": ["é", None],
        },
        {"id": "second", "prompt": CHAT},
        {"id": "third", "messages": CHAT, "response": ""},
        *({"id": n, "prompt": PROMPT, "response": f"price {word} ."} for n, word in enumerate(("nine", "twelve"))),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_improving_a_file_keeps_order_and_fields_and_fills_in_responses(
    tiny_run: Any, shell: Any, answers: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "better.jsonl"
    done = shell("improve", answers, "-o", out, "--run", tiny_run.root)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^5 answers, \d changed\. Stopped: .*\. Written to ", done.stdout, re.MULTILINE)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    better = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in better] == ["first", "second", "third", 0, 1]
    for row, improved in zip(rows, better, strict=True):
        made = improved.pop("pit")
        assert improved == row  # unchanged, with the prompt's shape
        assert made["stop_reason"] in ("accepted-none", "converged", "rounds")
        assert len(made["rounds"]) >= 1
        accepted = [step["proposal"] for step in made["rounds"] if step["accepted"]]
        assert made["final"] == [made["original"], *accepted][-1]
        assert made["original"] == row.get("response", made["original"])
    first = [json.loads(line)["pit"] for line in out.read_text().splitlines()]
    assert first[1]["original"] != ""  # the policy answered

    before = out.read_bytes()
    again = shell("improve", answers, "-o", out, "--run", tiny_run.root)
    assert again.returncode == 2
    assert again.stderr == f"Error: {out}: exists already; name another output, or give --force to replace it\n"
    assert out.read_bytes() == before
    forced = shell("improve", answers, "-o", out, "--run", tiny_run.root, "--force", "--rounds", 1)
    assert forced.returncode == 0, forced.stderr
    assert all(len(json.loads(line)["pit"]["rounds"]) == 1 for line in out.read_text().splitlines())


def test_the_python_api_is_what_the_readme_says(tiny_run: Any) -> None:
    from pitlm import GapModel, Improver, improve

    gap = GapModel.from_pretrained(tiny_run.root / "gap" / "model")
    improver = Improver.from_pretrained(str(tiny_run.root / "rl-1-policy" / "model"))

    value = gap.gap(PROMPT, "price nine .", RESPONSE)
    assert isinstance(value, float)
    assert math.isfinite(value)
    assert gap.gap(PROMPT, RESPONSE, RESPONSE) == 0.0  # no change
    assert gap.gap(CHAT, "price nine .", RESPONSE) == pytest.approx(value, abs=1e-5)

    traces = [improve(prompt, RESPONSE, improver=improver, gap=gap, rounds=3) for prompt in (PROMPT, CHAT)]
    assert traces[0] == traces[1]  # the same seed gives the same result
    trace = traces[0]
    assert isinstance(trace.final, str)
    assert 1 <= len(trace.gaps) <= 3
    assert trace.stop_reason in ("accepted-none", "converged", "rounds")
    assert trace.gaps[0] == pytest.approx(gap.gap(PROMPT, trace.rounds[0].proposal, RESPONSE), abs=1e-4)
    assert trace.final == RESPONSE or max(trace.gaps) > 0


def test_models_load_without_pitlm(tiny_run: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    gap = AutoModelForSequenceClassification.from_pretrained(tiny_run.root / "gap" / "model")
    assert gap.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(tiny_run.root / "gap" / "model")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert AutoModelForCausalLM.from_pretrained(tiny_run.root / "rl-1-policy" / "model").num_parameters() > 0


def test_the_reward_of_the_curriculum_and_the_tokens_of_each_system_can_be_set(
    tiny_run: Any, shell: Any, tmp_path: Path
) -> None:
    """The ablation with R_P(y) - R_P(y_ref) repeats RL and no earlier stage; a budget holds every system."""
    root = tmp_path / "ablation"
    shutil.copytree(tiny_run.root, root)
    sets = ["curriculum.reward=reward_difference", "evaluation.tokens=20"]
    done = shell("run", tiny_run.recipe, "--out", root, "--update", *(word for s in sets for word in ("--set", s)))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\] (\S+) \(done before\)", done.stdout) == STAGES[:5]
    record = json.loads((root / "rl-0-data" / "stage.json").read_text())
    assert record["settings"]["reward"] == "reward_difference"
    rewards, before = (
        [json.loads(line).get("reward") for line in (run / "rl-0-data" / "metrics.jsonl").read_text().splitlines()]
        for run in (root, tiny_run.root)
    )
    assert rewards[0] != before[0]  # the same first samples, another reward
    [_, answered] = run_verdicts(root)
    spent = {name: known.generated_tokens for name, known in answered.items()}
    assert {"resample", "best-of-N with R_PIT", "PIT with R_P difference"} <= set(spent)
    assert max(spent.values()) <= 20
    assert "held to 20 generated tokens" in (root / "report.html").read_text(encoding="utf-8")
