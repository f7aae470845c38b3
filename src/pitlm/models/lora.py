"""Adapters in files, in PEFT's format: a checkpoint of a run with LoRA is one adapter over the base of the run.

A stage trains its adapter on the weights of the checkpoint that it starts from. Over the base of the run a chain of
stages is one adapter of their summed rank, exactly: W + s B_1 A_1 + s B_2 A_2 = W + s [B_1, B_2] [A_1; A_2]. The last
rows of A and the last columns of B are what the last stage of the chain has trained.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pitlm.core.errors import InputError, loading
from pitlm.models.weights import check_weights

if TYPE_CHECKING:
    # Only for types: peft also imports bitsandbytes if it is installed, and whole models need neither.
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HEAD = PREFIX + "score.weight"

OWN_BASE = Path("data", "base")
"""Where a run keeps a base that it made, from the run's folder."""


def is_adapter(path: str | Path) -> bool:
    """Whether a checkpoint of pitlm is an adapter; otherwise it has whole weights."""
    return Path(path, CONFIG).is_file() and Path(path, "pit.json").is_file()


def base_name(folder: str | Path) -> str:
    """The path or hub name of the base under an adapter. If the run made the base, it is the one in the run's folder.

    Raises:
        InputError: the configuration is broken, or the base was a folder or a file that is no longer there.
    """
    with loading(folder, "LoRA adapter"):
        name: str = os.fspath(json.loads(Path(folder, CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])
    own = Path(folder).resolve().parent.parent / OWN_BASE
    if Path(name).match(str(OWN_BASE)) and own.is_dir():  # the run may have been moved or copied
        return str(own)
    if Path(name).is_absolute() and not Path(name).exists():
        raise InputError(f"{folder}: found an adapter over {name}, which is gone; expected this base at its old place")
    return name


def whole_name(path: str | Path) -> str:
    """The name of a checkpoint with whole weights in the configuration of an adapter over it."""
    return str(Path(path).resolve() if Path(path).exists() else path)


def save_adapter(model: PeftModel, start: Path, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the configuration of a model that was trained with LoRA, and its adapter over the base of the run.

    Args:
        start: the checkpoint that the adapter was trained on: the base itself, or an adapter over the base. In the
            latter case the two adapters are joined.
        state: whole weights, if the model's own are sharded over processes.
    """
    from peft import LoraConfig, get_peft_model_state_dict

    trained = model.peft_config["default"]
    own = get_peft_model_state_dict(model, state, save_embedding_layers=False)
    base, rank, before = whole_name(start), 0, dict[str, Tensor]()
    if is_adapter(start):
        config = LoraConfig.from_pretrained(str(start))
        scale = (config.lora_alpha / config.r) / (trained.lora_alpha / trained.r)
        base, rank, before = base_name(start), config.r, load_file(start / WEIGHTS)
        before = {name: weight * scale if _rank_dimension(name) else weight for name, weight in before.items()}
    head = {HEAD: own.pop(HEAD)} if HEAD in own else {}
    before.pop(HEAD, None)
    joined = _join(before, own, rank, trained.r)
    rank += trained.r
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in {**joined, **head}.items()}, folder / WEIGHTS)
    targets = sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in joined})
    kept = {"task_type": trained.task_type, "modules_to_save": ["score"] if head else None, "inference_mode": True}
    sizes = {"r": rank, "lora_alpha": trained.lora_alpha * rank / trained.r}
    LoraConfig(base_model_name_or_path=base, target_modules=targets, **sizes, **kept).save_pretrained(str(folder))
    shape = copy.deepcopy(model.config)
    vars(shape).pop("quantization_config", None)
    shape.save_pretrained(folder)


def _rank_dimension(name: str) -> int:
    """Which dimension of a factor is the rank: the first of ``lora_A.weight`` or ``lora_embedding_A``."""
    return int("B" in name.rpartition(".lora_")[2])


def _join(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *ranks: int) -> dict[str, Tensor]:
    """Factors of the sum of two adapters of one scale; zeros replace a factor that one adapter lacks."""
    joined: dict[str, Tensor] = {}
    for name, some in {**first, **second}.items():
        dimension, parts = _rank_dimension(name), []
        for factors, rank in zip((first, second), ranks, strict=True):
            shape = (some.shape[0], rank) if dimension else (rank, some.shape[1])
            parts.append(factors[name].cpu() if name in factors else torch.zeros(shape, dtype=some.dtype))
        joined[name] = torch.cat(parts, dimension)
    return joined


def last_trained(folder: Path, rank: int) -> dict[str, Tensor]:
    """The adapter that the last stage of a chain trained, by the names of PEFT's format; ``rank`` is its rank."""
    weights = load_file(folder / WEIGHTS)
    return {name: w[:, -rank:] if _rank_dimension(name) else w[-rank:] for name, w in weights.items() if name != HEAD}


def attach(model: PreTrainedModel | PeftModel, folder: Path, name: str) -> tuple[PeftModel, Tensor | None]:
    """Give a model the adapter in ``folder`` under a name, beside adapters that the model has.

    Returns:
        The model in PEFT's wrapper, and the trained head of a model that scores, which the model does not get.

    Raises:
        InputError: an adapter that cannot be loaded, or whose weights are missing or not finite.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    with loading(folder, "LoRA adapter"):
        weights = load_file(folder / WEIGHTS)
        config = LoraConfig.from_pretrained(str(folder))
        lost = {HEAD} - weights.keys() if config.modules_to_save else set()
        config.modules_to_save, config.task_type = None, None
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = PeftModel(model, config, adapter_name=name)
        lost |= get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).keys() - weights.keys()
        check_weights(folder, lost, weights.items())
        head = weights.pop(HEAD, None)
        set_peft_model_state_dict(model, weights, adapter_name=name)
    return model, head


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A base with the adapter in ``folder`` added to its weights, and with the trained head of a model that scores."""
    from peft.utils.integrations import gather_params_ctx

    with gather_params_ctx(list(model.parameters())):  # ZeRO-3 shards them
        wrapped, head = attach(model, folder, "default")
        whole: PreTrainedModel = wrapped.merge_and_unload().requires_grad_(True)
        if head is not None:
            whole.score.load_state_dict({"weight": head})
    return whole
