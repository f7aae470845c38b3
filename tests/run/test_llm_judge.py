"""A run whose recipe names a language model as a judge beside the truth, against a scripted endpoint."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_endpoint import ScriptedEndpoint

from pitlm.core.verdicts import Verdict, VerdictRow

pytestmark = pytest.mark.timeout(1200)
TEMPLATE = "{{ prompt }}<{{ mark }}>{{ first }}<{{ mark }}>{{ second }}<{{ mark }}>Which is better?"


def shorter(request: dict[str, Any]) -> str:
    """A judge that prefers the shorter answer, whichever is shown first."""
    _, first, second, _ = re.split("<[0-9a-f]{16}>", request["messages"][-1]["content"])
    return f"Verdict: {'A' if len(first) < len(second) else 'B' if len(second) < len(first) else 'tie'}"


def test_a_language_model_judges_a_run_beside_the_truth(tiny_run: Any, shell: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.root, tmp_path / "run"))
    (tmp_path / "judge.txt").write_text(TEMPLATE)
    with ScriptedEndpoint(shorter) as server:

        def pit_run(limit: float) -> Any:
            llm = {"kind": "llm", "model": "short [m]", "base_url": server.base_url, "template": "judge.txt"}
            recipe = yaml.safe_load(tiny_run.recipe.read_text())
            recipe["evaluation"]["judges"] = [{"kind": "truth"}, {**llm, "price": "1,1,1", "max_cost": limit}]
            (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe))
            return shell("run", tmp_path / "two.yaml", "--out", run, "--update")

        stopped = pit_run(0.001)
        assert stopped.returncode == 3, stopped.stderr
        assert "the cost limit of 0.001 is reached" in " ".join(stopped.stderr.split())
        bought = len(server.answered)
        assert bought > 0
        done = pit_run(1.0)
        assert done.returncode == 0, done.stderr
        assert len(server.answered) > bought
        assert len({call.text for call in server.answered}) == len(server.answered)  # nothing is paid for twice

    lines = (run / "evaluation" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [VerdictRow.from_dict(json.loads(line)) for line in lines]
    items = [json.loads(line) for line in (run / "evaluation" / "items.jsonl").read_text().splitlines()]
    answers = {item["item"]: item["answers"] for item in items}
    judged = [row for row in rows if row.judge == "short [m]"]
    assert len(judged) == len(rows) / 2 == 16 * (len(items[0]["answers"]) - 1)
    for row in judged:
        mine, theirs = len(answers[row.item][row.first]), len(answers[row.item]["original"])
        assert row.lengths == (mine, theirs)
        assert row.verdict is (Verdict.WIN if mine < theirs else Verdict.LOSS if mine > theirs else Verdict.TIE)
        same = answers[row.item][row.first] == answers[row.item]["original"]
        assert len(row.replies) == (0 if same else 2)  # nobody is asked about equal answers

    # Paid replies measure the agreement with the labels on as many pairs as there are items; the truth is free.
    found = json.loads((run / "evaluation" / "stage.json").read_text())["result"]["judges"]
    held_out = json.loads((run / "data" / "stage.json").read_text())["result"]["folds"]["test"]["pairs"]
    assert (found["true utility"]["pairs"], found["short [m]"]["pairs"]) == (held_out, 16)
    assert held_out > 16
    assert len(server.answered) <= sum(len(row.replies) for row in judged) + 2 * 16
    # The first judge of the recipe gives the headline; each judge has its table, and they are compared.
    printed = " ".join(done.stdout.split())
    for judge in ("true utility", "short [m]"):
        assert f"Against the original answer, 16 held-out prompts, judge: {judge}" in printed
        assert re.search(
            rf"The judge \({re.escape(judge)}\) agrees with \d+\.\d% \[.*\] of \d+ held-out labels", printed
        )
    assert re.search(r"PIT against the original answer: .* judged by true utility\.", printed)
    assert "Cohen's kappa: short [m], true utility" in printed
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("Judged by true utility", "Judged by short [m]", "short [m] with the held-out labels"):
        assert words in page
    assert f"short [m] was asked about 16 of the {held_out} held-out pairs with labels" in page
    assert "true utility was asked about" not in page

    found = shell("evaluate", run, "--resamples", 50)
    assert found.returncode == 0, found.stderr
    for words in ("Against original, judged by short [m]", "Position (both orders)", "Agreement of 2 judges"):
        assert words in found.stdout
    assert re.search(r"short \[m\] +│ +\d+ +│ +100\.0 \[.*, 100\.0\]", found.stdout)  # consistent in both orders
