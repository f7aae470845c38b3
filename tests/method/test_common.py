"""The order of rows, and interrupted training that continues to the same result."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from builders import ASK, preference, random_model, rl_section, train_section, workbench
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import pitlm.method.common as common
import pitlm.method.rl as rl
from pitlm.core.nouns import Prompt
from pitlm.core.recipe import LoraSection
from pitlm.data.template import Template
from pitlm.method.common import last_whole_checkpoint, length_grouped
from pitlm.method.supervised import gap_rows, improver_rows, train_on_rows
from pitlm.models.loading import load_model, load_tokenizer

WORDS = (
    "the price is nine",
    "happy to help",
    "it is small",
    "silly question",
    "read it yourself",
    "nine",
    "red",
    "lamp",
)
STEPS, CUT = 6, 5
RNG = random.Random(0)
LENGTHS = [RNG.randrange(5, 500) for _ in range(1_003)]


class Interrupted(Exception):
    """Stands for a machine that goes away."""


class Watch(TrainerCallback):
    """Counts the steps of this attempt. Interrupts it at a given step, or after the last checkpoint."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop
        self.steps: list[int] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)
        if state.global_step == self.stop != STEPS:
            raise Interrupted

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.stop == STEPS:
            raise Interrupted


def run_sft(bench, **kwargs):
    pairs = [preference(f"is it {word} ?", word, other) for word, other in zip(WORDS, WORDS[::-1], strict=True)]
    rows = improver_rows(pairs, bench.tokenizer, Template(ASK))
    train_on_rows(
        "improver",
        rows,
        rows[:2],
        train_section(**{"batch_size": 4, "epochs": STEPS / 2, "save_every": 2, **kwargs}),
        bench,
    )


def run_capped(bench):
    """Train with twice as many rows as the steps need."""
    run_sft(bench, epochs=STEPS, max_steps=STEPS)


def run_rl(bench, **kwargs):
    conversations = [Template(ASK).improver_messages(Prompt.of("what is it ?"), word) for word in WORDS]

    def reward(rows, conversations):
        return torch.tensor([-sum(row[-4:]) / 100 for row in rows])

    section = rl_section(**{"max_steps": STEPS, "save_every": 2, "batch_size": 8, "accumulation": 2, **kwargs})
    rl.train_rl(conversations, reward, section, bench, title="RL", anchor=bench.start)


STAGES = {"sft": run_sft, "capped": run_capped, "rl": run_rl}


@pytest.fixture(params=["sft", "rl", "sft-lora", "rl-lora"])
def stage(request, bases, monkeypatch):
    """Return a function that runs one stage in a folder, interrupted at a step or not, and returns the steps taken."""
    name, _, lora = request.param.partition("-")
    work, genuine = STAGES[name], common.callbacks

    def run(folder: Path, stop: int | None = None) -> list[int]:
        watch = Watch(stop)
        monkeypatch.setattr(common, "callbacks", lambda bench, title: [*genuine(bench, title), watch])
        bench = workbench(folder, bases("words"), peft=LoraSection(r=4, alpha=8) if lora else None, seed=3)
        torch.manual_seed(stop or 99)  # earlier random draws must not matter
        if stop is None:
            work(bench)
        else:
            with pytest.raises(Interrupted):
                work(bench)
        return watch.steps

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder, load_tokenizer(folder)).state_dict()


def same_weights(one: Path, other: Path) -> None:
    first, second = (weights(folder / "model") for folder in (one, other))
    for name, weight in first.items():
        torch.testing.assert_close(
            second[name], weight, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert len(steps) == len(set(steps)), "a step is logged twice"
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_going_on_gives_the_weights_of_an_uninterrupted_run(stage, bases, tmp_path):
    assert stage(tmp_path / "straight") == list(range(1, STEPS + 1))
    stage(tmp_path / "cut", CUT)
    assert {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir() if path.is_dir()} == {
        "checkpoint-2",
        "checkpoint-4",
    }
    # The newest checkpoint is incomplete, as after a full disk: its last file is missing.
    copied = shutil.copytree(tmp_path / "cut", tmp_path / "half")
    (copied / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    assert stage(tmp_path / "cut") == [5, 6]
    assert stage(copied) == [3, 4, 5, 6]
    untrained = AutoModelForCausalLM.from_pretrained(bases("words")).state_dict()
    trained = weights(tmp_path / "straight" / "model")
    assert any((trained[name] - weight).abs().max() > 1e-3 for name, weight in untrained.items())
    for folder in (tmp_path / "cut", copied):
        same_weights(tmp_path / "straight", folder)
        assert losses(folder) == pytest.approx(losses(tmp_path / "straight"), abs=1e-5)
        assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("stage", ["sft", "capped", "rl"], indirect=True)
def test_a_run_cut_after_its_last_step_makes_no_further_one(stage, tmp_path):
    stage(tmp_path / "straight")
    stage(tmp_path / "cut", STEPS)
    assert (tmp_path / "cut" / "checkpoints" / f"checkpoint-{STEPS}").is_dir()
    assert stage(tmp_path / "cut") == []
    same_weights(tmp_path / "straight", tmp_path / "cut")


@pytest.mark.parametrize("stage", ["sft"], indirect=True)
def test_a_finished_model_is_not_trained_again(stage, tmp_path):
    """The interruption came after training, for example in the health of a gap model."""
    assert len(stage(tmp_path / "run")) == STEPS
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "checkpoints" / "checkpoint-6").mkdir(parents=True)  # the kill came before they were deleted
    assert stage(tmp_path / "run") == []
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("stage", ["sft"], indirect=True)
def test_training_without_a_whole_checkpoint_begins_again(stage, tmp_path):
    stage(tmp_path / "cut", 1)
    (tmp_path / "cut" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert stage(tmp_path / "cut") == list(range(1, STEPS + 1))
    assert list(losses(tmp_path / "cut")) == list(range(1, STEPS + 1))


def test_the_newest_whole_checkpoint_is_found_by_number(tmp_path):
    for step, state in ((9, "{}"), (10, "{}"), (20, '{"global_st'), (100, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path, delete=False) == tmp_path / "checkpoint-10"
    assert (tmp_path / "checkpoint-100").is_dir()
    assert last_whole_checkpoint(tmp_path, delete=True) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert last_whole_checkpoint(tmp_path / "none", delete=True) is None


def test_every_row_comes_once_an_epoch_and_the_seed_decides():
    order = length_grouped(LENGTHS, batch_size=16, epochs=2.5, seed=1)
    rows = list(range(len(LENGTHS)))
    assert [sorted(order[:1003]), sorted(order[1003:2006])] == [rows, rows]
    assert len(order) == round(2.5 * 1003)
    assert order == length_grouped(LENGTHS, batch_size=16, epochs=2.5, seed=1)
    assert order[:1003] != order[1003:2006]
    assert order != length_grouped(LENGTHS, batch_size=16, epochs=2.5, seed=2)


def test_padding_is_a_small_share_of_what_random_batches_have():
    def padding(order):
        batches = [[LENGTHS[i] for i in order[at : at + 16]] for at in range(0, len(order), 16)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert padding(length_grouped(LENGTHS, batch_size=16, epochs=1, seed=0)) < 0.2 * padding(range(len(LENGTHS)))


@pytest.mark.parametrize("epochs", [0.0001, 0.01])
def test_a_sliver_of_an_epoch_is_one_row_at_least(epochs):
    assert len(length_grouped([3, 4, 5], batch_size=2, epochs=epochs, seed=0)) == 1


SMOL = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def small_smol(bases, tmp_path_factory) -> Path:
    """SmolLM2-135M with a quarter of its widths and of its vocabulary; rank 4 in it is rank 16 in the original."""
    folder = tmp_path_factory.mktemp("smol") / "base"
    shape = {"vocab_size": 12_288, "hidden_size": 144, "intermediate_size": 384, "max_position_embeddings": 128}
    random_model(AutoModelForCausalLM, "llama", **shape, **SMOL).save_pretrained(folder)
    load_tokenizer(bases("words")).save_pretrained(folder)
    return folder


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_stage_with_lora_takes_a_tenth_of_its_base_on_the_disk(small_smol, tmp_path):
    lora = LoraSection(r=4, alpha=8)
    sft = workbench(tmp_path / "sft", small_smol, peft=lora)
    run_sft(sft, max_steps=1)
    gap = workbench(tmp_path / "gap", sft.model_folder, "gap", peft=lora)
    triples = gap_rows([preference("is it red ?", "nine", "red")] * 4, gap.tokenizer, Template(ASK))
    train_on_rows("gap", triples, triples, train_section(max_steps=1), gap)
    rl_bench = workbench(tmp_path / "rl", sft.model_folder, peft=lora)
    run_rl(rl_bench, max_steps=1)
    base = (small_smol / "model.safetensors").stat().st_size
    assert base == pytest.approx(134_515_008 / 16 * 4, rel=0.01)
    factors = 30 * 4 * (2 * (144 + 144) + 2 * (144 + 48) + 3 * (144 + 384)) * 4  # of one stage
    for bench, joined in ((sft, 1), (gap, 2), (rl_bench, 2)):
        (weights,) = bench.folder.rglob("*.safetensors")
        assert weights.stat().st_size == pytest.approx(joined * factors, rel=0.05)
        assert size(bench.folder) < base / 10


@pytest.mark.parametrize("work", [run_sft, run_rl])
def test_no_checkpoint_has_an_embedding_though_a_token_was_added(bases, tmp_path, monkeypatch, work):
    """The base pads with its end token, so the stage adds a token to it."""
    seen = []

    def keep(self, args, state, control, **kwargs):
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        seen.append(load_file(folder / "adapter_model.safetensors").keys())

    monkeypatch.setattr(common.MetricsWriter, "on_save", keep)
    bench = workbench(tmp_path / "stage", bases("gpt"), peft=LoraSection(r=4, alpha=8))
    work(bench)
    assert len(seen) == 3
    for names in (*seen, load_file(bench.model_folder / "adapter_model.safetensors").keys()):
        assert names
        assert all(".lora_A." in name or ".lora_B." in name for name in names)
    known = len(AutoTokenizer.from_pretrained(bases("gpt")))
    assert load_model(bench.model_folder, bench.tokenizer).config.vocab_size == known + 1


def test_what_is_loaded_was_trained(bases, tmp_path, monkeypatch):
    """Over a base, and over a stage: to the last bit where the sum is made in one step."""
    ended = []

    def keep(self, args, state, control, model=None, **kwargs):
        ended.append(copy.deepcopy(model).merge_and_unload().state_dict())

    monkeypatch.setattr(common.MetricsWriter, "on_train_end", keep)
    starts = {"first": bases("llama3"), "second": tmp_path / "first" / "model"}
    for (name, start), rounding in zip(starts.items(), (0.0, 1e-6), strict=True):
        bench = workbench(tmp_path / name, start, peft=LoraSection(r=4, alpha=8))
        run_sft(bench, learning_rate=0.05)
        found, wanted = weights(bench.model_folder), ended.pop()
        assert found.keys() == wanted.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=rounding, atol=rounding, msg=name)
