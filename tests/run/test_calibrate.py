"""`pit calibrate` at the command line: a promise, a margin, and a loop that keeps the promise."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import RECIPE

from pitlm.core.nouns import Answer, Preference, Prompt
from pitlm.core.recipe import Recipe
from pitlm.run.calibrate import answers_to_choose_on, fresh_answers
from pitlm.run.context import Context
from pitlm.run.folder import stored_recipe

PROMPT = "lamp : price nine color red size small . price ?"


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    rows = [{"prompt": PROMPT, "response": f"price {word} ."} for word in ("nine", "twelve", "thirty", "sixty", "none")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def calibrated(tiny_run: Any, tmp_path: Path) -> Path:
    """A calibrated copy of the run; `pit calibrate` writes beside the gap model."""
    return Path(shutil.copytree(tiny_run.root, tmp_path / "copy"))


def test_calibrating_stores_a_margin_that_improving_then_uses(
    calibrated: Path, shell: Any, answers: Path, tmp_path: Path
) -> None:
    done = shell("calibrate", "--run", calibrated, "--harm", 0.6, "--json", tmp_path / "curve.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "curve.json").read_text())
    stored = json.loads((calibrated / "gap" / "model" / "calibration.json").read_text())
    assert set(figures) == set(stored) == {"R_PIT", "R_PIT and R_P"}
    assert "always accept" in done.stdout
    assert "made worse" in (calibrated / "calibration.svg").read_text()
    for name, found in figures.items():
        assert f"{name}: chosen on {stored[name]['items']} fresh answers, up to 3 rounds, judge: true" in done.stdout
        assert found["chosen"]["margin"] == stored[name]["margin"] is not None
        assert found["held_out"]["items"] == 16
        assert stored[name]["items"] == found["chosen"]["items"] > 16
    # The promise here is so weak that any margin keeps it. Set an infinite margin, and check that the loop uses it.
    stored["R_PIT and R_P"]["margin"] = None
    (calibrated / "gap" / "model" / "calibration.json").write_text(json.dumps(stored))
    done = shell("improve", answers, "-o", tmp_path / "better.jsonl", "--run", calibrated)
    assert done.returncode == 0, done.stderr
    assert "5 answers, 0 changed. Stopped: accepted-none 5." in done.stdout
    assert "100.0% of 5 answers unchanged" in done.stdout
    done = shell("improve", answers, "-o", tmp_path / "again.jsonl", "--run", calibrated, "--margin", 0)
    printed = " ".join(done.stdout.split())  # lines may be wrapped
    assert re.search(r"Gaps of the first proposals: .* Distance from the calibration's: gaps 0\.", printed)
    assert "Warning: margin 0 is set; the promise about harm can be kept by no margin." in printed


def test_further_prompts_are_chosen_on_beside_the_held_out_ones(calibrated: Path, tmp_path: Path) -> None:
    run, file = Context(stored_recipe(calibrated), calibrated), tmp_path / "more.jsonl"
    trained_on = run.folds["sft"][0].prompt.as_messages()
    both = PROMPT.replace("price ?", "price color ?")
    rows = [{"prompt": PROMPT}, {"prompt": both, "response": "color red ."}, {"prompt": trained_on}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, shown_before = fresh_answers(run, None)
    chosen, shown = fresh_answers(run, None, file)
    assert shown == shown_before
    assert [p.text for p, _ in chosen[len(before) :]] == [PROMPT, both]
    assert chosen[-1][1] == "color red ."
    assert chosen[-2][1] != "color red ."
    assert len(fresh_answers(run, 5, file)[0]) == 5


def test_a_bad_row_among_the_further_prompts_is_named(calibrated: Path, shell: Any, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n{}\n")
    done = shell("calibrate", "--run", calibrated, "--prompts", tmp_path / "more.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert "more.jsonl:2: found the fields none, expected 'prompt' or 'messages'" in " ".join(done.stderr.split())
    assert not (calibrated / "gap" / "model" / "calibration.json").exists()


@pytest.mark.parametrize("prompt", ["What is a lamp?", PROMPT.replace("price ?", "weight ?")])
def test_a_prompt_that_the_truth_cannot_judge_is_named(
    calibrated: Path, shell: Any, tmp_path: Path, prompt: str
) -> None:
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"prompt": x}) + "\n" for x in (PROMPT, prompt)))
    done = shell("calibrate", "--run", calibrated, "--prompts", tmp_path / "more.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"more.jsonl:2: found {prompt!r}, expected a prompt of the pocket world" in " ".join(done.stderr.split())
    assert not (calibrated / "gap" / "model" / "calibration.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "nowhere: found no recipe.json, expected the folder of a run"),
        (["--run", "nowhere", "--harm", "0"], "Invalid value for '--harm'"),
        (["--run", "nowhere", "--confidence", "1.5"], "Invalid value for '--confidence'"),
        ([], "Missing option '--run'"),
    ],
)
def test_what_cannot_be_calibrated_is_named(shell: Any, arguments: list[str], message: str) -> None:
    done = shell("calibrate", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_evaluation_chooses_a_margin_on_no_more_answers_than_it_has_items(tmp_path: Path) -> None:
    class Copycat:
        def answer(self, prompts: Any, **how: Any) -> list[Answer]:
            return [Answer(prompt.text) for prompt in prompts]

    context = Context(Recipe.of({**RECIPE, "evaluation": {"items": 3}}, "mine.yaml"), tmp_path)
    pairs = [Preference(Prompt.of(f"number {n}"), "yes", "no") for n in range(40)]
    vars(context)["folds"] = {"validation": pairs[:20], "test": pairs[20:]}  # in place of those in the run's folder
    chosen = answers_to_choose_on(context, Copycat())  # type: ignore[arg-type]
    assert [prompt.text for prompt, _ in chosen] == ["number 0", "number 1", "number 2"]
