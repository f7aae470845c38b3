"""What is written and shown while a model is trained."""

from __future__ import annotations

import json

import pytest
from transformers import TrainerState

from pitlm.io.atomic import write_json_lines
from pitlm.method.watch import MetricsWriter, read_metrics


def test_kl_is_told_per_sequence(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    logs = {"kl": 0.02, "completions/mean_length": 30.0}
    writer.on_log(None, TrainerState(), None, logs=logs)
    assert logs["kl_sequence"] == pytest.approx(0.6)
    writer.on_log(None, TrainerState(), None, logs=(other := {"loss": 1.0}))
    assert other == {"loss": 1.0}
    rows = [json.loads(line) for line in writer.path.read_text().splitlines()]
    assert rows == [{"step": 0, **logs}, {"step": 0, **other}]


def test_an_answer_may_hold_any_line_end(tmp_path):
    rows = [{"answers": ["one\u2028two", "three\x85four"]}, {"answers": ["five"]}]
    path = tmp_path / "answers.jsonl"
    write_json_lines(path, rows)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"answers": ["cut')
    assert read_metrics(path) == rows
    assert read_metrics(tmp_path / "missing.jsonl") == []
