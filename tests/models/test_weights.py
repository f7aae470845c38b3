"""A checkpoint that lacks a tensor, or has a broken number, is refused: no model of ours has random weights."""

from __future__ import annotations

import shutil

import pytest
import torch
from builders import ASK, generator_checkpoint, scorer_checkpoint
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from pitlm.core.errors import InputError
from pitlm.engines.generators import Improver, Policy
from pitlm.models.adapters import Bases
from pitlm.models.loading import Card, load_model, load_tokenizer, save
from pitlm.models.scorers import GapModel, RewardModel

OPEN = {"policy": Policy, "improver": Improver, "gap": GapModel, "reward": RewardModel}


def adapter(base, folder, kind):
    """As a stage with LoRA writes it."""
    tokenizer, scores = load_tokenizer(base), kind in ("gap", "reward")
    task = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if scores else {"task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        wrapped = get_peft_model(load_model(base, tokenizer, writes=not scores), LoraConfig(**task, r=2))
    save(wrapped, tokenizer, Card(kind, ASK, 8), folder, start=base)


@pytest.fixture(scope="module")
def checkpoint(bases, tmp_path_factory):
    made = {}

    def make(kind, *, lora):
        if (kind, lora) not in made:
            made[kind, lora] = folder = tmp_path_factory.mktemp(kind) / "model"
            if lora:
                adapter(bases("llama3"), folder, kind)
            elif kind in ("gap", "reward"):
                scorer_checkpoint(bases("llama3"), folder, kind)
            else:
                generator_checkpoint(bases("llama3"), folder, kind)
        return made[kind, lora]

    return make


def damaged(folder, place, change):
    """A copy of a checkpoint with changed tensors."""
    shutil.copytree(folder, place)
    (file,) = place.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return place


def refused(kind, folder):
    for bases in (None, Bases()):
        with pytest.raises(InputError) as error:
            OPEN[kind].from_pretrained(folder, bases=bases)
        assert str(error.value).startswith(f"{folder}: found ")
    return str(error.value)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", OPEN)
def test_every_tensor_is_needed(checkpoint, tmp_path, kind, lora):
    whole = checkpoint(kind, lora=lora)
    OPEN[kind].from_pretrained(whole)
    (file,) = whole.glob("*.safetensors")
    for number, name in enumerate(load_file(file)):
        left = damaged(whole, tmp_path / str(number), lambda tensors, name=name: tensors.pop(name))
        assert f"no weights for {name}, expected a whole checkpoint" in refused(kind, left)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["improver", "gap"])
def test_one_broken_number_is_found(checkpoint, tmp_path, kind, lora, value):
    whole = checkpoint(kind, lora=lora)
    (file,) = whole.glob("*.safetensors")
    for number, name in enumerate(sorted(load_file(file))[::3]):

        def spoil(tensors, name=name):
            tensors[name].view(-1)[-1] = value

        assert f"found NaN or infinity in {name}" in refused(kind, damaged(whole, tmp_path / str(number), spoil))


def test_several_missing_tensors_are_counted(checkpoint, tmp_path):
    left = damaged(
        checkpoint("gap", lora=False), tmp_path / "gap", lambda tensors: [tensors.popitem() for _ in range(5)]
    )
    assert refused("gap", left).endswith(" and 2 more, expected a whole checkpoint")


@pytest.mark.parametrize("family", ["llama3", "qwen3", "gpt"])
def test_a_base_needs_no_head_that_scores_but_all_else(bases, tmp_path, family):
    load_model(bases(family), load_tokenizer(bases(family)), writes=False)
    name = next(
        name for name in load_file(bases(family) / "model.safetensors") if "layers.0" in name or ".h.0." in name
    )
    left = damaged(bases(family), tmp_path / "base", lambda tensors: tensors.pop(name))
    for writes in (True, False):
        with pytest.raises(InputError, match="no weights for"):
            load_model(left, load_tokenizer(left), writes=writes)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"base_model_name_or_path": 3}', b"\xff"])
def test_a_broken_configuration_of_an_adapter_is_one_message(checkpoint, tmp_path, content):
    left = shutil.copytree(checkpoint("gap", lora=True), tmp_path / "gap")
    (left / "adapter_config.json").write_bytes(content)
    for bases in (None, Bases()):
        with pytest.raises(InputError, match="cannot load a LoRA adapter"):
            GapModel.from_pretrained(left, bases=bases)


def test_a_cut_off_file_of_weights_is_one_message(checkpoint, tmp_path):
    for lora in (False, True):
        left = shutil.copytree(checkpoint("gap", lora=lora), tmp_path / str(lora))
        (file,) = left.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-9])
        for bases in (None, Bases()):
            with pytest.raises(InputError, match="cannot load a "):
                GapModel.from_pretrained(left, bases=bases)
