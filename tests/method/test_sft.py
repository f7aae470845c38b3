"""Supervised fine-tuning: the loss is the NLL of the completion tokens only."""

from __future__ import annotations

import json

import pytest
import torch
from builders import preference, train_section, workbench
from transformers import AutoModelForCausalLM

from pitlm.data.template import Template
from pitlm.method.sft import improver_rows, policy_rows
from pitlm.method.supervised import train_on_rows
from pitlm.models.generators import Improver

PAIRS = [
    preference("is it small ?", "the price is nine .", "silly question ."),
    preference("what is the price ?", "nine", "read it yourself ."),
    preference("what is it ?", "happy to help . the price is nine .", "it"),
    preference("is it it ?", "it is small .", "it"),
]


def nll(folder, rows) -> float:
    """Mean over all completion tokens of the batch, one row at a time, no padding."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    losses: list[float] = []
    for prompt, completion in rows:
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=torch.tensor([prompt + completion])).logits[0], -1)
        losses += [-logp[len(prompt) + t - 1, token].item() for t, token in enumerate(completion)]
    return sum(losses) / len(losses)


def logged(bench):
    return [json.loads(line) for line in (bench.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("family", ["words", "llama3", "qwen3"])
def test_the_loss_is_that_of_the_completion_tokens(bases, tmp_path, family, accumulation):
    bench = workbench(tmp_path / "sft", bases(family))
    rows = improver_rows(PAIRS, bench.tokenizer, Template(bench.card.ask))
    section = train_section(batch_size=4, accumulation=accumulation, learning_rate=1e-9)
    metrics = train_on_rows("improver", rows, rows, section, bench)
    expected = nll(bases(family), rows)
    assert logged(bench)[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_every_reply_of_a_conversation_is_learnt_and_nothing_between(bases, tmp_path):
    """Each reply counts as if its conversation so far were a separate row."""
    bench = workbench(tmp_path / "sft", bases("words"))
    rows = improver_rows(PAIRS[:2], bench.tokenizer, Template(bench.card.ask))
    (one, two), (three, four) = rows
    train_on_rows("improver", [(one, two, three, four)], [(one, two)], train_section(), bench)
    apart = [(one, two), (one + two + three, four)]
    assert logged(bench)[0]["loss"] == pytest.approx(nll(bases("words"), apart), rel=1e-4)


def test_a_row_is_what_the_improver_will_be_shown_and_the_better_response(bases, tmp_path):
    bench = workbench(tmp_path / "sft", bases("words"))
    template = Template(bench.card.ask)
    for (prompt, completion), pair in zip(improver_rows(PAIRS, bench.tokenizer, template), PAIRS, strict=True):
        text = bench.tokenizer.decode(prompt)
        assert text.index(pair.prompt.text) < text.index(f"<|assistant|> {pair.rejected}") < text.index(bench.card.ask)
        assert bench.tokenizer.decode(completion) == f"{pair.chosen} <|end|>"
    for (prompt, completion), pair in zip(policy_rows(PAIRS, bench.tokenizer, template), PAIRS, strict=True):
        assert (
            bench.tokenizer.decode(prompt + completion)
            == f"<|user|> {pair.prompt.text} <|assistant|> {pair.chosen} <|end|>"
        )


def test_training_teaches_the_better_response(bases, tmp_path):
    bench = workbench(tmp_path / "sft", bases("words"), max_new_tokens=12)
    rows = improver_rows(PAIRS, bench.tokenizer, Template(bench.card.ask))
    metrics = train_on_rows(
        "improver", rows, rows, train_section(batch_size=4, epochs=80.0, learning_rate=2e-2, log_every=50), bench
    )
    assert metrics["eval_loss"] < 0.05
    improver = Improver.from_pretrained(bench.model_folder)
    answers = improver.propose([p.prompt for p in PAIRS], [p.rejected for p in PAIRS], temperature=0.0)
    assert [answer.text for answer in answers] == [pair.chosen for pair in PAIRS]
    assert [answer.generated_tokens for answer in answers] == [len(pair.chosen.split()) + 1 for pair in PAIRS]


def test_every_epoch_meets_every_row_once(bases, tmp_path):
    """12 steps of 1 row are three epochs over four rows, whatever the trainer's own sampler does."""
    bench = workbench(tmp_path / "sft", bases("words"))
    rows = improver_rows(PAIRS, bench.tokenizer, Template(bench.card.ask))
    train_on_rows("improver", rows, rows[:1], train_section(batch_size=1, epochs=3.0, learning_rate=1e-9), bench)
    losses = [round(row["loss"], 4) for row in logged(bench) if "loss" in row]
    alone = sorted(round(nll(bases("words"), [row]), 4) for row in rows)
    assert len(losses) == 12
    for epoch in range(3):
        assert sorted(losses[4 * epoch : 4 * epoch + 4]) == pytest.approx(alone, abs=2e-4)
