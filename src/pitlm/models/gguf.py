"""GGUF files, the format of llama.cpp, as the start of a training."""

import copy
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from transformers import AutoModelForCausalLM, AutoTokenizer

from pitlm.io.atomic import atomic_folder
from pitlm.io.digest import digest


def converted(file: Path) -> Path:
    """The checkpoint with the weights of a GGUF file: safetensors, tokenizer, chat template and generation settings.

    The first call converts the file and stores the checkpoint in the cache of huggingface_hub (under ``HF_HOME``), in a
    folder named after the file and its content. Later calls return that folder.

    The weights are stored in float32, which holds the weights of quantized blocks exactly. bfloat16 would round them
    once more.

    Raises:
        OSError, ValueError, RuntimeError, ImportError: the file cannot be read, its architecture or quantization is
            unknown to transformers, or the package ``gguf`` is missing.
    """
    if not file.is_file():
        raise FileNotFoundError("no such file")
    name = f"{file.stem}-{digest(file, sample=True)}"
    folder: Path = cached_assets_path("pitlm", namespace="gguf", subfolder=name) / "checkpoint"
    if folder.is_dir():
        return folder
    read = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    # transformers refuses to save a model that it read from a GGUF file, so an equal model takes the weights over.
    config = copy.deepcopy(read.config)
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict(), assign=True)
    with atomic_folder(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    return folder
