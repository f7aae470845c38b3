"""A run whose start model answers the questions of the house style."""

from __future__ import annotations

import json

import pytest

from pitlm.run import stage_work
from pitlm.worlds import house_style
from pitlm.worlds.house_style import questions

SIZES = {"data.source": "house-style", "data.pairs": 24, "data.max_prompt_tokens": 400, "data.max_new_tokens": 12}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(stage_work, "WRITTEN", 10)
    # A tiny model keeps to no question, so all its answers would be equally bad, and no pair would get a label.
    monkeypatch.setattr(house_style, "utility", lambda prompt, response: sum(map(ord, response)) / 1e4)


def start(cli, base, out, **changes):
    model = {"model.init": "null", "model.base": base, "model.improver_start": "base"} if base else {}
    chosen = [part for name, value in {**SIZES, **model}.items() for part in ("--set", f"{name}={value}")]
    return cli("run", cli.recipe, "--out", out, "--until", "data", *chosen)


def pairs_of(out):
    rows = [json.loads(line) for path in sorted((out / "data").glob("*.jsonl")) for line in path.open()]
    return [row for row in rows if "chosen" in row]


def test_the_start_model_writes_both_answers_of_a_pair(cli, tmp_path, bases):
    code, _ = start(cli, bases("bpe"), tmp_path / "run")
    assert code == 0
    pairs = pairs_of(tmp_path / "run")
    assert 20 <= len(pairs) <= 24
    assert {pair["prompt"][-1]["content"] for pair in pairs} <= set(questions())


def test_an_interrupted_data_stage_keeps_its_answers(cli, tmp_path, bases, monkeypatch):
    assert start(cli, bases("bpe"), tmp_path / "whole")[0] == 0
    answer, calls = stage_work.Policy.answer, []

    def cut(self, prompts, **how):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, prompts, **how)

    monkeypatch.setattr(stage_work.Policy, "answer", cut)
    assert start(cli, bases("bpe"), tmp_path / "cut")[0] == 130
    kept = (tmp_path / "cut" / "data" / "answers-1.jsonl").read_text()
    (tmp_path / "cut" / "data" / "answers-1.jsonl").write_text(kept + '{"answers": ["half a l')
    monkeypatch.setattr(stage_work.Policy, "answer", answer)
    assert start(cli, bases("bpe"), tmp_path / "cut")[0] == 0
    assert calls == [10, 10, 4]
    assert pairs_of(tmp_path / "cut") == pairs_of(tmp_path / "whole")


def test_a_misspelt_world_is_named(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "data.source", "housestyle")
    code, message = start(cli, None, tmp_path / "run")
    assert code == 2
    assert "data.source: found 'housestyle', did you mean the world 'house-style'?" in message


def test_a_model_from_scratch_cannot_answer(cli, tmp_path):
    code, message = start(cli, None, tmp_path / "run")
    assert code == 2
    assert "model.base: found nothing, expected a chat model" in message
