"""Checkpoints for other engines: a type of their own, and all that a server has to know written into the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

from transformers import GenerationConfig, PreTrainedTokenizerBase

from pitlm.core.errors import InputError
from pitlm.models.adapters import CONFIG, OVER_BASE, WEIGHTS, base_name
from pitlm.models.loading import Card, load_causal, load_scorer, load_tokenizer, save
from pitlm.text.template import served_template

Dtype = Literal["float32", "bfloat16", "float16"]
WRITERS = ("policy", "improver")


def export_model(source: Path, card: Card, folder: Path, *, dtype: Dtype | None, temperature: float | None) -> None:
    """Write a checkpoint with its chat template for servers, and how it is sampled from.

    Args:
        dtype: of the weights; default: as they are saved.
        temperature: that a server samples at where it is told nothing, 0 for greedy; None leaves that to it.

    Raises:
        InputError: no model there.
    """
    tokenizer = _opened(source)
    kind = dtype or str(json.loads((source / "config.json").read_text(encoding="utf-8"))["dtype"])
    if card.kind not in WRITERS:
        save(load_scorer(source, tokenizer, kind), tokenizer, card, folder)
        return
    model = load_causal(source, tokenizer, kind)
    model.config.use_cache = True  # training with recomputed activations turns it off
    served = _for_servers(tokenizer, card)
    model.generation_config = _sampling(tokenizer, card, temperature)
    save(model, served, card, folder)


def export_adapter(source: Path, card: Card, folder: Path) -> None:
    """Write a model's adapter over the base of its run, in PEFT's format, with its tokenizer.

    Raises:
        InputError: the model has none.
    """
    own = source / OVER_BASE
    if not own.is_dir():
        raise InputError(f"--adapter: found none over a base in {source}, expected a model of a run with peft")
    tokenizer = _opened(source)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(own / name, folder / name)
    (_for_servers(tokenizer, card) if card.kind in WRITERS else tokenizer).save_pretrained(folder)
    card.save(folder)


def adapter_base(source: Path) -> str | None:
    """The path or hub name of the base under a model's adapter; None where it has none."""
    return base_name(source) if (source / OVER_BASE).is_dir() else None


def _opened(source: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(source)
    for name in ("is_local", "local_files_only"):  # how it was opened here, which would be written down
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _for_servers(tokenizer: PreTrainedTokenizerBase, card: Card) -> PreTrainedTokenizerBase:
    ask = card.ask if card.kind == "improver" else None
    written = tokenizer.chat_template
    tokenizer.chat_template = (
        {name: served_template(one, ask) for name, one in written.items()}
        if isinstance(written, dict)
        else served_template(written, ask)
    )
    return tokenizer


def _sampling(tokenizer: PreTrainedTokenizerBase, card: Card, temperature: float | None) -> GenerationConfig:
    """The distribution that the run samples from: of all tokens, up to as many as it was trained to write."""
    how = {}
    if temperature is not None:
        how = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {}
        how = how or {"do_sample": False}
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=card.max_new_tokens,
        **how,
    )
