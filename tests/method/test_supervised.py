"""SFT: the loss is the NLL of the completion tokens only. R_P and R_PIT: rows, losses, and the count of right orders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from builders import preference, scorer_checkpoint, train_section, workbench
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer, SFTTrainer

from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe import LoraSection
from pitlm.core.recipe_file import load_recipe
from pitlm.core.training_sections import DPOSection, GapSection
from pitlm.data.template import Template, encode_completion, encode_prompts
from pitlm.engines.generators import Improver
from pitlm.method.supervised import (
    CompletionSFTTrainer,
    GapRow,
    GapTrainer,
    PairTrainer,
    dpo_rows,
    dpo_trainer,
    gap_rows,
    improver_rows,
    policy_rows,
    reward_rows,
    scorer_trainer,
    sft_trainer,
    start_of,
    train_on_rows,
    tree_batch,
)
from pitlm.models.scorers import GapModel, score_ids
from pitlm.run.context import Context
from pitlm.run.stages import build_stages

PAIRS = [
    preference("is it small ?", "the price is nine .", "silly question ."),
    preference("what is the price ?", "nine", "read it yourself ."),
    preference("what is it ?", "happy to help . the price is nine .", "it"),
    preference("is it it ?", "it is small .", "it"),
]
TRIPLES = [
    preference("is it small ?", "the price is nine .", "silly question ."),
    preference("what is the price ?", "nine", "read it yourself . silly question . read it yourself ."),
    preference("what is it ?", "happy to help .", "it is it ."),
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


@pytest.mark.parametrize("peft", [None, LoraSection(r=4, alpha=8)])
@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_only_completions_pass_the_head_and_the_gradient_is_that_of_trl(bases, tmp_path, family, peft):
    """TRL's own trainer passes every position but the last of each padded row."""
    bench = workbench(tmp_path / "sft", bases(family), peft=peft)
    rows = improver_rows(PAIRS, bench.tokenizer, Template(bench.card.ask))
    gradients, headed = [], []
    for compute_loss in (CompletionSFTTrainer.compute_loss, SFTTrainer.compute_loss):
        trainer = sft_trainer(bench.load(), rows, rows, train_section(batch_size=4), bench)
        model = trainer.accelerator.unwrap_model(trainer.model)
        head = model.get_output_embeddings().register_forward_pre_hook(
            lambda _, given: headed.append(given[0].shape[1])
        )
        [batch] = trainer.get_train_dataloader()
        compute_loss(trainer, model, batch).backward()
        head.remove()
        gradients.append({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
    assert headed == [sum(len(completion) for _, completion in rows)]  # TRL multiplies with the head's weight itself
    ours, stock = gradients
    assert ours.keys() == stock.keys()
    for name, gradient in stock.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


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


def test_dpo_compares_y_w_with_y_l_beside_either_reference(bases, tmp_path):
    bench = workbench(tmp_path / "dpo", bases("words"), "improver")
    rows = dpo_rows(PAIRS, bench.tokenizer, Template(bench.card.ask))
    assert len(rows) == 2 * len(PAIRS)
    pair, beside_l, beside_w = PAIRS[2], rows[2], rows[6]
    for row, reference in ((beside_l, pair.rejected), (beside_w, pair.chosen)):
        shown = Template(bench.card.ask).improver_messages(pair.prompt, reference)
        assert [row.prompt_ids] == encode_prompts(bench.tokenizer, [shown])
        assert row.chosen_ids == encode_completion(bench.tokenizer, pair.chosen)
        assert row.rejected_ids == encode_completion(bench.tokenizer, pair.rejected)


def test_dpo_starts_at_its_anchor_and_learns_to_prefer_y_w(bases, tmp_path):
    """Before the first step improver and anchor are equal: the loss is log 2, whatever beta is."""
    bench = workbench(tmp_path / "dpo", bases("words"), "improver")
    rows = dpo_rows(PAIRS, bench.tokenizer, Template(bench.card.ask))
    section = DPOSection(**{**train_section(epochs=12).model_dump(), "learning_rate": 3e-3}, beta=0.5)
    trainer = dpo_trainer(bench.load(), rows, rows, section, bench)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    trained = train_on_rows("dpo", rows, rows, section, bench)
    assert trained["eval_loss"] < 0.5
    assert trained["eval_rewards/accuracies"] == 1.0
    assert Improver.from_pretrained(bench.model_folder)


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


@pytest.fixture(params=["words", "qwen3"])
def bench(request, bases, tmp_path):
    start = scorer_checkpoint(bases(request.param), tmp_path / "start", "gap")
    return workbench(tmp_path / "gap", start, "gap")


@pytest.fixture
def rows(bench):
    return gap_rows(TRIPLES, bench.tokenizer, Template(bench.card.ask))


@pytest.fixture
def trainer(bench, rows):
    return scorer_trainer(GapTrainer, bench.load(), rows, rows, train_section(), bench)


def test_a_batch_is_four_blocks_of_rows_and_says_how_many_triples_it_holds():
    rows = [{"wl": [1], "ww": [2, 2], "ll": [3, 3, 3], "lw": [4]}, {"wl": [5, 5], "ww": [6], "ll": [7], "lw": [8, 8]}]
    batch = tree_batch(GapRow._fields, rows)
    assert batch["forest"].rows == [[1], [5, 5], [2, 2], [6], [3, 3, 3], [7], [4], [8, 8]]
    assert next(iter(batch.values())).shape == (2,)


def test_rows_are_the_improvers_prompt_and_completion(bench, rows):
    tokenizer, pair = bench.tokenizer, TRIPLES[1]
    shown = {}
    for name, y_ref in (("w", pair.chosen), ("l", pair.rejected)):
        [shown[name]] = encode_prompts(tokenizer, [Template(bench.card.ask).improver_messages(pair.prompt, y_ref)])
    y = {"w": encode_completion(tokenizer, pair.chosen), "l": encode_completion(tokenizer, pair.rejected)}
    for name in GapRow._fields:  # candidate, then reference
        assert getattr(rows[1], name) == shown[name[1]] + y[name[0]]


def test_the_loss_is_eq_2_of_four_separate_forward_passes(bench, rows, trainer):
    model = AutoModelForSequenceClassification.from_pretrained(bench.start)
    total, right = 0.0, [0] * 5
    for row in rows:
        with torch.no_grad():
            wl, ww, ll, lw = (model(input_ids=torch.tensor([ids])).logits.item() for ids in row)
        differences = [wl - ww, wl - ll, wl - lw, ww - lw, ll - lw]
        total += sum(math.log1p(math.exp(-difference)) for difference in differences)
        right = [count + (difference > 0) for count, difference in zip(right, differences, strict=True)]
    batch = trainer.data_collator([row._asdict() for row in rows])
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    assert loss.requires_grad
    assert outputs["scores"].shape == (3, 4)
    counted = trainer.evaluate()
    names = [f"eval_order/{relation}" for relation in ("wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw")]
    assert [counted[name] for name in names] == pytest.approx([count / 3 for count in right])
    assert counted["eval_accuracy"] == counted["eval_order/wl>lw"]
    assert counted["eval_loss"] == pytest.approx(total / 3, rel=1e-5)


def test_an_ablation_of_eq_2_trains_the_named_terms(bench, rows):
    section = GapSection(**train_section().model_dump(), terms=["wl>lw"])
    trainer = scorer_trainer(GapTrainer, bench.load(), rows, rows, section, bench)
    batch = trainer.data_collator([row._asdict() for row in rows])
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    differences = [(row[0] - row[3]).item() for row in outputs["scores"]]
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-d)) for d in differences) / 3, rel=1e-5)


def test_scores_in_training_are_those_that_rl_and_the_loop_will_see(bench, rows, trainer):
    batch = trainer.data_collator([row._asdict() for row in rows])
    trainer.model.eval()
    with torch.no_grad():
        trained_on = trainer.compute_loss(trainer.model, batch, return_outputs=True)[1]["scores"]
    flat = [ids for row in rows for ids in row]
    torch.testing.assert_close(score_ids(trainer.model, flat), trained_on.flatten(), atol=1e-5, rtol=0)


def test_training_orders_the_pairs_and_the_checkpoint_keeps_it(bases, tmp_path):
    bench = workbench(tmp_path / "gap", bases("words"), "gap")
    rows = gap_rows(TRIPLES, bench.tokenizer, Template(bench.card.ask))
    section = train_section(batch_size=3, epochs=40.0, learning_rate=3e-2, log_every=10)
    metrics = train_on_rows("gap", rows, rows, section, bench)
    assert metrics["eval_loss"] < 1.0 < 5 * math.log(2)
    assert metrics["eval_accuracy"] == 1.0
    gap = GapModel.from_pretrained(bench.model_folder)
    for pair in TRIPLES:
        assert gap.gap(pair.prompt, pair.chosen, pair.rejected) > 0 > gap.gap(pair.prompt, pair.rejected, pair.chosen)
    assert [row["step"] for row in logged(bench) if "loss" in row] == [1, 10, 20, 30, 40]


def test_the_reward_model_is_the_pairwise_loss(bases, tmp_path):
    start = scorer_checkpoint(bases("llama3"), tmp_path / "start", "reward")
    bench = workbench(tmp_path / "reward", start, "reward")
    rows = reward_rows(TRIPLES, bench.tokenizer, Template(bench.card.ask))
    model = AutoModelForSequenceClassification.from_pretrained(start)
    total = 0.0
    for row in rows:
        with torch.no_grad():
            w, l = (model(input_ids=torch.tensor([ids])).logits.item() for ids in row)
        total += math.log1p(math.exp(l - w))
    train_on_rows("reward", rows, rows, train_section(batch_size=3, learning_rate=1e-9), bench)
    assert logged(bench)[0]["loss"] == pytest.approx(total / 3, rel=1e-4)


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_the_gradient_of_the_reward_model_is_that_of_trl(bases, tmp_path, family):
    """TRL reads both rows of a pair whole and padded."""
    start = scorer_checkpoint(bases(family), tmp_path / "start", "reward")
    bench = workbench(tmp_path / "reward", start, "reward")
    rows = reward_rows(TRIPLES, bench.tokenizer, Template(bench.card.ask))
    ours = scorer_trainer(PairTrainer, bench.load(), rows, rows, train_section(batch_size=3), bench)
    args = RewardConfig(
        str(tmp_path / "stock"), use_cpu=True, bf16=False, per_device_train_batch_size=3, max_length=None, report_to=[]
    )
    data = Dataset.from_list([row._asdict() for row in rows])
    stock = RewardTrainer(bench.load(), args=args, train_dataset=data, processing_class=bench.tokenizer)
    found = []
    for trainer in (ours, stock):
        model = trainer.accelerator.unwrap_model(trainer.model)
        [batch] = trainer.get_train_dataloader()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        found.append((loss.item(), {name: w.grad for name, w in model.named_parameters() if w.grad is not None}))
    (loss, gradients), (expected, of_trl) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == of_trl.keys()
    for name, gradient in of_trl.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("base", "start"), [("smollm2", "smollm2"), (None, "runs/mine/policy-sft/model")])
def test_the_judge_starts_from_a_pretrained_base_and_r_p_from_the_policy(base, start):
    init = "null" if base else "{architecture: llama}"
    settings = {"data.source": "pairs.jsonl", "model.base": base or "null", "model.init": init}
    run = Context(load_recipe(find_recipe("hh-smol"), settings), Path("runs/mine"))
    needs = {stage.name: stage.needs for stage in build_stages(run.recipe, contents=False)}
    assert start_of(run, "reward", needs["judge"]) == (base or Path(start))
    assert start_of(run, "reward", needs["reward"]) == Path("runs/mine/policy-sft/model")
