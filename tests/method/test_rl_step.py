"""The step that reads each prompt once: the losses and gradients equal TRL's, and TRL has the names that it uses."""

from __future__ import annotations

import inspect
import json
import random

import pytest
import torch
from builders import FAMILIES, rl_section, workbench
from datasets import Dataset
from peft import LoraConfig
from trl import RLOOConfig, RLOOTrainer

from pitlm.core.recipe import LoraSection
from pitlm.method import rl_step
from pitlm.method.rl import train_rl
from pitlm.method.rl_step import SharedPromptRLOOTrainer
from pitlm.models.loading import load_model, load_tokenizer
from pitlm.models.trees import reads_trees

PAD_LEFT, GROUPS, G = 5, 3, 4


def trainer(kind, base, folder, lora=None):
    tokenizer = load_tokenizer(base)
    model = load_model(base, tokenizer)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
    made = kind(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=RLOOConfig(
            str(folder), per_device_train_batch_size=G, num_generations=G, bf16=False, use_cpu=True, report_to="none",
            beta=0.1, temperature=0.7, gradient_checkpointing=False, disable_dropout=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=tokenizer,
        peft_config=lora,
    )  # fmt: skip
    if lora is not None:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            for name, weight in made.model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.2)
    return made


def batch(tokenizer):
    """Groups that share their prompt. Lengths differ, and some completions begin alike."""
    rng, pad = random.Random(0), tokenizer.pad_token_id
    known = [i for i in range(len(tokenizer)) if i != pad]
    prompts, completions = [], []
    for size in (12, 30, 21):
        prompt, begin = rng.choices(known, k=size), rng.choices(known, k=3)
        prompts += [prompt] * G
        completions += [begin + rng.choices(known, k=k) for k in (1, 5, 9)] + [rng.choices(known, k=4)]
    p, c = max(map(len, prompts)), max(map(len, completions))
    left, right = ([pad] * (p - len(x)) + x for x in prompts), [x + [pad] * (c - len(x)) for x in completions]
    lengths = torch.tensor([len(x) for x in completions])
    return {
        "prompt_ids": torch.tensor(list(left)),
        "prompt_mask": torch.tensor([[0] * (p - len(x)) + [1] * len(x) for x in prompts]),
        "completion_ids": torch.tensor(right),
        "completion_mask": (torch.arange(c) < lengths[:, None]).long(),
        "old_logps": -2.0 * lengths - 0.1 * torch.arange(len(lengths)) % 1,
        "advantages": torch.linspace(-1, 1, len(lengths)),
    }


def loss_and_gradient(made, inputs):
    made.model.zero_grad()
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])
    return loss.detach(), gradient


@pytest.fixture(params=["llama3", "qwen3"])
def base(request, tmp_path):
    return FAMILIES[request.param](tmp_path / "base")


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")])
def test_losses_and_gradients_are_those_of_trl(base, tmp_path, lora):
    stock, ours = (trainer(kind, base, tmp_path, lora) for kind in (RLOOTrainer, SharedPromptRLOOTrainer))
    inputs = batch(stock.processing_class)
    mask = inputs["completion_mask"]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    seen = torch.cat([inputs["prompt_mask"], mask], 1)
    assert reads_trees(ours.model)
    assert not reads_trees(stock.model)
    for size in (None, 5):
        with torch.no_grad():
            read = [
                t._get_per_token_logps_and_entropies(t.model, ids, seen, mask.shape[1], size, compute_entropy=True)
                for t in (stock, ours)
            ]
        for expected, found in zip(read[0][:2], read[1][:2], strict=True):
            torch.testing.assert_close(found * mask, expected * mask, rtol=1e-5, atol=1e-5)
    # keeps the ratio near one, so the clip does not cut its gradient
    inputs["old_logps"] = (read[0][0] * mask).sum(1) + 0.05 * torch.linspace(-1, 1, len(mask))
    (loss, gradient), (our_loss, our_gradient) = (loss_and_gradient(t, inputs) for t in (stock, ours))
    assert gradient.norm() > 0.01
    torch.testing.assert_close(our_loss, loss, rtol=1e-5, atol=1e-5)
    assert (our_gradient - gradient).norm() / gradient.norm() < 1e-5


def test_samples_are_read_once_by_the_policy_and_once_by_the_reference(base, tmp_path, monkeypatch):
    ours = trainer(SharedPromptRLOOTrainer, base, tmp_path)
    ours.model.train()
    read = []
    plain = rl_step.completion_log_probs
    monkeypatch.setattr(rl_step, "completion_log_probs", lambda model, *rest: read.append(model) or plain(model, *rest))
    ours.compute_loss(ours.model, ours._prepare_inputs([{"prompt": "a"}] * G)).backward()
    assert read == [ours.model, ours.ref_model]
    assert ours.kept is None


def test_samples_are_drawn_from_the_stream_that_a_checkpoint_keeps(base, tmp_path):
    """The same state of torch's stream gives the same samples; in a group they differ, and each prompt is read once."""
    ours = trainer(SharedPromptRLOOTrainer, base, tmp_path)
    ours.model.train()
    asked = [ids for ids in ([5, 6, 7], [5, 8, 9, 10]) for _ in range(G)]
    passes = []
    ours.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(ours._generate_single_turn(asked, None, {}))
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(map(tuple, drawn[0][at : at + G]))) > 1 for at in (0, G))
    assert passes[0] == (2, 16)  # both prompts, without their last token, in one pass
    assert ours.model.training


def test_the_reference_is_read_the_same_way(base, tmp_path):
    ours = trainer(SharedPromptRLOOTrainer, base, tmp_path)
    assert reads_trees(ours.ref_model)


@pytest.mark.parametrize("peft", [None, LoraSection(r=4, alpha=8)])
def test_a_stage_takes_the_same_steps_either_way(tmp_path, peft, monkeypatch):
    """With the samples that TRL draws."""
    monkeypatch.setattr(SharedPromptRLOOTrainer, "_generate_single_turn", RLOOTrainer._generate_single_turn)
    base = FAMILIES["llama3"](tmp_path / "base")
    conversations = [[{"role": "user", "content": text}] for text in ("is it small ?", "price ?", "what is it ?")]
    logs = []
    for share in (False, True):
        bench = workbench(tmp_path / str(share), base, peft=peft)
        section = rl_section(max_steps=3, learning_rate=1e-3, share_prompts=share)
        reward = lambda rows, conversations: torch.tensor([-sum(row[-4:]) / 100 for row in rows])  # noqa: E731
        train_rl(conversations, reward, section, bench, title="RL", anchor=base)
        logs.append([json.loads(line) for line in (bench.folder / "metrics.jsonl").read_text().splitlines()])
    stock, ours = logs
    assert len(stock) >= 3
    for expected, found in zip(stock[:3], ours[:3], strict=True):
        for name in ("loss", "kl", "reward", "entropy", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name


def test_what_is_leant_on_in_trl_is_there():
    """A minor release of TRL may change these names. Then this test fails, and `share_prompts: false` still works."""
    ours, theirs = (
        inspect.signature(kind._get_per_token_logps_and_entropies).parameters
        for kind in (SharedPromptRLOOTrainer, RLOOTrainer)
    )
    named = [name for name in ours if name != "images"]
    assert list(theirs)[: len(named)] == named
    for caller in (RLOOTrainer._generate_and_score_completions, RLOOTrainer._compute_loss):
        assert "self._get_per_token_logps_and_entropies(" in inspect.getsource(caller)
