"""Trees: the same scores and gradients as separate rows, whatever the architecture and however rows share."""

from __future__ import annotations

import logging
import math
import random

import pytest
import torch
from builders import TINY_LLAMA, random_model, scorer_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pitlm.core.equations import gap_loss
from pitlm.models.forest import Forest
from pitlm.models.loading import load_model, load_tokenizer
from pitlm.models.scorers import GapModel, score_ids
from pitlm.models.trees import (
    ARCHITECTURES,
    completion_log_probs,
    enable_trees,
    reads_trees,
    score_tree,
    warn_once,
)

PAD, END, VOCABULARY = 0, 1, 100
LLAMA = {**TINY_LLAMA, "max_position_embeddings": 512}
SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {key: value for key, value in LLAMA.items() if "key_value" not in key and key != "head_dim"},
    "gemma3_text": {**LLAMA, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4096},
    "qwen3_moe": {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "gemma2": {**LLAMA, "attn_logit_softcapping": 50.0},
}
CANNOT = ("bloom", "falcon", "gemma2")


def tiny(architecture: str, *, auto=AutoModelForSequenceClassification, **changes):
    ids = {"pad_token_id": PAD, "bos_token_id": END, "eos_token_id": END}
    shape = {**SHAPES.get(architecture, LLAMA), "vocab_size": VOCABULARY, "num_labels": 1, **ids, **changes}
    return random_model(auto, architecture, **shape)


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(2, VOCABULARY) for _ in range(count)]


def quartets(seed: int = 0, sizes=((40, 9, 12), (7, 30, 3), (70, 30, 40), (1, 2, 3), (30, 8, 8))) -> list[list[int]]:
    """The four rows of Eq. 2 for triples of different lengths: all wl, all ww, all ll, all lw."""
    rng = random.Random(seed)
    four = []
    for of_x, of_w, of_l in sizes:
        x, ask = tokens(rng, of_x), tokens(rng, 3)
        w, l = [*tokens(rng, of_w), END], [*tokens(rng, of_l), END]
        four.append([x + l + ask + w, x + w + ask + w, x + l + ask + l, x + w + ask + l])
    return [row for rows in zip(*four, strict=True) for row in rows]


def separately(model, rows) -> torch.Tensor:
    """Plain transformers, one row at a time."""
    return torch.stack([model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def gradients(model, scores: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    gap_loss(*scores.float().chunk(4)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_scores_and_gradients_are_those_of_separate_rows(architecture):
    model, rows = tiny(architecture), quartets()
    expected = separately(model, rows)
    expected_gradient = gradients(model, expected)
    enable_trees(model)
    assert reads_trees(model)
    found = score_tree(model, Forest.of(rows))
    assert relative(found, expected) < 1e-5
    assert relative(gradients(model, found), expected_gradient) < 1e-5


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_log_probabilities_and_their_gradients_are_those_of_separate_rows(architecture):
    plain, tree = (tiny(architecture, auto=AutoModelForCausalLM) for _ in range(2))
    enable_trees(tree)
    rng = random.Random(1)
    prompts = [prompt for size in (25, 1, 60) for prompt in [tokens(rng, size)] * 3]
    begin = tokens(rng, 4)
    rows = [prompt + (begin if i % 3 else []) + tokens(rng, 1 + i) for i, prompt in enumerate(prompts)]
    logp_RC, entropy_RC = completion_log_probs(tree, Forest.of(rows), [len(prompt) for prompt in prompts], 0.7)
    separate = []
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        every = (plain(input_ids=torch.tensor([row])).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
        count = len(row) - len(prompt)
        separate.append(every.gather(1, torch.tensor(row[len(prompt) :])[:, None])[:, 0])
        assert relative(logp_RC[number, :count], separate[-1]) < 1e-5
        assert relative(entropy_RC[number, :count], -(every.exp() * every).sum(-1)) < 1e-4
        assert not logp_RC[number, count:].any()
    weights = torch.linspace(-1, 1, len(rows))
    torch.dot(torch.stack([row.sum() for row in separate]), weights).backward()
    torch.dot(logp_RC.sum(1), weights).backward()
    expected, found = (
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) for model in (plain, tree)
    )
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("architecture", CANNOT)
def test_the_others_are_scored_as_rows_and_say_so_once(architecture, caplog):
    warn_once.cache_clear()
    model, rows = tiny(architecture), quartets()
    expected = separately(model, rows)
    expected_gradient = gradients(model, expected)
    with caplog.at_level(logging.WARNING):
        enable_trees(model)
        enable_trees(tiny(architecture))
    assert not reads_trees(model)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [architecture]
    found = score_tree(model, Forest.of(rows))
    assert relative(found, expected) < 1e-5
    assert relative(gradients(model, found), expected_gradient) < 1e-5
    assert relative(score_ids(model, rows, tokens_per_batch=200), expected.detach()) < 1e-5


@pytest.mark.parametrize("architecture", CANNOT)
def test_the_others_cannot_be_made_equal(architecture):
    """Checks the list: forced to read trees, these models fail or give other scores."""
    from pitlm.models.trees import TREE_ATTENTION

    model, rows = tiny(architecture), quartets()
    expected = separately(model, rows).detach()
    model.set_attn_implementation(TREE_ATTENTION)
    if not reads_trees(model):
        return  # transformers itself refuses
    try:
        found = score_tree(model, Forest.of(rows)).detach()
    except ValueError:
        return
    assert relative(found, expected) > 1e-3


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("mistral", {"sliding_window": 6}),
        ("gemma3_text", {"sliding_window": 6}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
    ],
)
def test_a_sliding_window_counts_along_the_branch(architecture, changes):
    model, rows = tiny(architecture, **changes), quartets()
    wide = separately(tiny(architecture), rows)
    expected = separately(model, rows)
    assert relative(wide, expected) > 1e-2  # the window changes the scores
    enable_trees(model)
    assert relative(score_tree(model, Forest.of(rows)), expected) < 1e-5
    assert relative(score_tree(model, Forest.of(rows[:1])), expected[:1]) < 1e-5


def test_any_way_of_sharing_gives_the_same_scores():
    """Random families of rows: with shared beginnings, equal, one a prefix of another, of one token, unrelated."""
    model = tiny("llama")
    rng = random.Random(1)
    enable_trees(model)
    for _ in range(25):
        rows = [tokens(rng, rng.randrange(1, 60))]
        while len(rows) < rng.randrange(2, 24):
            old = rng.choice(rows)
            kept = old[: rng.randrange(len(old) + 1)] if rng.random() < 0.8 else old
            rows.append(kept + tokens(rng, rng.choice([0, 1, 2, 20, 50])) or [5])
        rng.shuffle(rows)
        with torch.no_grad():
            expected = separately(model, rows)
            torch.testing.assert_close(score_tree(model, Forest.of(rows)), expected, rtol=1e-5, atol=1e-5)
        for budget in (1, 70, 10_000):
            torch.testing.assert_close(score_ids(model, rows, budget), expected, rtol=1e-5, atol=1e-5)


def test_equal_rows_are_read_once_and_score_the_same_to_the_last_bit():
    rows = [[5, 6, 7, END], [5, 6, 8, END], [5, 6, 7, END]]
    forest = Forest.of(rows)
    assert forest.input_ids_1T.tolist() == [[5, 6, 7, END, 8, END]]
    model = tiny("llama")
    enable_trees(model)
    scores = score_tree(model, forest)
    assert scores[0].item() == scores[2].item()


def test_eq_2_reads_x_once_and_each_reference_once():
    """By hand: 4x + 4w + 4l tokens become x + 3w + 3l."""
    rng = random.Random(0)
    x, w, l = tokens(rng, 350), [*tokens(rng, 34), END], [*tokens(rng, 34), END]
    w[0], l[0] = 5, 6  # no chance overlap
    rows = [x + l + w, x + w + w, x + l + l, x + w + l]
    assert sum(map(len, rows)) == 4 * (350 + 35 + 35)
    forest = Forest.of(rows)
    assert forest.input_ids_1T.numel() == 350 + 3 * 35 + 3 * 35
    depth = forest.position_ids_1T[0]
    for row, last in zip(rows, forest.last_R.tolist(), strict=True):
        assert depth[last] == len(row) - 1
        assert forest.input_ids_1T[0, last] == END


def test_nine_candidates_read_their_reference_once():
    rng = random.Random(0)
    reference = [*tokens(rng, 34), END]
    begin = tokens(rng, 350) + reference
    candidates = [[first, *tokens(rng, 33), END] for first in range(20, 28)]
    forest = Forest.of([begin + y for y in [*candidates, reference]])
    assert forest.input_ids_1T.numel() == 350 + 35 + 9 * 35


def test_each_token_is_put_out_once_and_attention_stays_near_what_is_needed():
    rows = quartets(sizes=[(random.Random(i).randrange(5, 200), 5 + i, 40 - i) for i in range(32)])
    forest = Forest.of(rows)
    total = forest.input_ids_1T.numel()
    assert sorted(set(forest.order_T.tolist())) == sorted(forest.order_T.tolist())
    assert len(forest.order_T) == total
    attended = sum(block.queries_nQ.numel() * block.keys_nK.shape[1] for block in forest.blocks)
    assert attended < 0.6 * sum(len(row) ** 2 for row in rows)
    assert len(forest.blocks) < 20


def test_no_attention_call_copies_many_long_contexts_at_once():
    rng = random.Random(0)
    x = tokens(rng, 3_000)
    forest = Forest.of([[*x, first, *tokens(rng, 199)] for first in range(5, 37)])
    assert max(block.keys_nK.numel() for block in forest.blocks) <= 16_384


def test_unrelated_rows_do_not_share_a_common_header():
    """Three shared tokens in four hundred do not justify a masked branch."""
    rng = random.Random(0)
    rows = [[5, 6, 7, *tokens(rng, 400)] for _ in range(4)]
    forest = Forest.of(rows)
    assert forest.input_ids_1T.numel() == 4 * 403
    assert all(block.allowed_nQK is None for block in forest.blocks)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
def test_under_bfloat16_autocast_no_order_flips(architecture):
    """For pairs where separate rows in float32 have a gap above 0.05."""
    model, rows = tiny(architecture), quartets(sizes=[(20 + i, 5 + i % 7, 4 + i % 5) for i in range(24)])
    with torch.no_grad():
        exact = separately(model, rows)
        enable_trees(model)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = score_tree(model, Forest.of(rows)).float()
    scale = exact.std()  # scores of order one, as in a trained gap model
    wl, _, ll, _ = (exact / scale).chunk(4)
    wl_16, _, ll_16, _ = (rounded / scale).chunk(4)
    clear = (wl - ll).abs() > 0.05
    assert clear.sum() > 15
    assert torch.equal((wl - ll)[clear] > 0, (wl_16 - ll_16)[clear] > 0)


def test_gradient_checkpointing_reads_the_same_trees():
    model, rows = tiny("llama"), quartets()
    enable_trees(model)
    model.train()
    expected = gradients(model, score_tree(model, Forest.of(rows)))
    model.gradient_checkpointing_enable()
    assert relative(gradients(model, score_tree(model, Forest.of(rows))), expected) < 1e-6


def test_an_adapter_and_its_head_are_trained_through_trees():
    from peft import LoraConfig, get_peft_model

    model, rows = tiny("llama"), quartets()
    wrapped = get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS", modules_to_save=["score"]))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    expected = separately(wrapped, rows)
    expected_gradient = gradients(wrapped, expected)
    enable_trees(model)
    assert reads_trees(wrapped)
    found = score_tree(wrapped, Forest.of(rows))
    assert relative(found, expected) < 1e-5
    assert relative(gradients(wrapped, found), expected_gradient) < 1e-5


def test_the_checkpoint_on_disk_names_no_attention_of_ours(bases, tmp_path):
    folder = scorer_checkpoint(bases("llama3"), tmp_path / "gap", "gap")
    model = load_model(folder, load_tokenizer(folder), writes=False)
    assert reads_trees(model)
    model.save_pretrained(tmp_path / "saved")
    assert "pitlm" not in (tmp_path / "saved" / "config.json").read_text()
    assert math.isfinite(GapModel.from_pretrained(folder).gap("is it small ?", "nine", "silly question ."))
