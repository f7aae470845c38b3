"""What the evaluation of a run left in its folder. Nothing that trains is imported, which takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pitlm.core.errors import InputError
from pitlm.evaluate.summary import AnswerFigures
from pitlm.loop.baselines.baseline import ORIGINAL
from pitlm.run.folder import stage_result, stored_recipe


def run_verdicts(root: Path) -> tuple[Path, dict[str, AnswerFigures]]:
    """The file of a run's verdicts, and what the run knows of its systems beside the verdicts.

    Raises:
        InputError: the folder holds no run, or a run without evaluation.
    """
    stored_recipe(root)
    stage_result(root, "evaluation")
    verdicts = root / "evaluation" / "verdicts.jsonl"
    if not verdicts.is_file():
        raise InputError.at(verdicts, found="no such file", expected="the verdicts of a run of this version")
    return verdicts, answered(read_lines(verdicts.with_name("items.jsonl")))


def answered(items: Sequence[Mapping[str, Any]]) -> dict[str, AnswerFigures]:
    """What the rows of ``items.jsonl`` say of each system, in the order of the rows' answers."""
    found = {}
    for name in items[0]["answers"]:
        copies = [item["answers"][name] == item["answers"][ORIGINAL] for item in items]
        tokens = np.mean([item["tokens"][name] for item in items], axis=0)
        found[name] = AnswerFigures(float(np.mean(copies)), *tokens.tolist())
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that a run wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
