"""Checkpoints for other engines: everything in Hugging Face's format that they need to run a model as pitlm does."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

from transformers import AutoConfig, GenerationConfig

from pitlm.core.errors import InputError
from pitlm.data.template import served_template
from pitlm.io.atomic import write_text
from pitlm.models.loading import Card, HFTokenizer, load_model, load_tokenizer, save
from pitlm.models.lora import CONFIG, WEIGHTS, base_name
from pitlm.models.scratch import special_ids


def export_weights(source: Path, folder: Path, card: Card, *, temperature: float, dtype: str | None = None) -> str:
    """Write the checkpoint in ``source`` for other engines: weights, tokenizer, sampling, card.

    Args:
        temperature: default sampling temperature.
        dtype: type of the weights; None leaves the weights as they are.

    Returns:
        The dtype of the written weights.

    Raises:
        InputError: nothing loadable there.
    """
    tokenizer = _tokenizer(source, card)
    dtype = dtype or str(AutoConfig.from_pretrained(source).dtype or "float32").removeprefix("torch.")
    model = load_model(source, tokenizer, dtype, writes=card.writes)
    if card.writes:
        model.generation_config = sampling(tokenizer, card, temperature, model.config.get_text_config().vocab_size)
        model.config.use_cache = True  # training leaves it off
    save(model, tokenizer, card, folder)
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)  # a server may run as another user than the owner
    return dtype


def export_adapter(source: Path, folder: Path, card: Card) -> tuple[str, int]:
    """Write a checkpoint's adapter over the base of its run, in PEFT's format, with tokenizer and card.

    Returns:
        The base by path or hub name, and the adapter's rank.
    """
    tokenizer = _tokenizer(source, card)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source / name, folder / name)
    tokenizer.save_pretrained(folder)
    card.save(folder)
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    with suppress(InputError):  # a base that is gone does not keep anybody from sharing the adapter
        config["base_model_name_or_path"] = base_name(source)
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return config["base_model_name_or_path"], config["r"]


def sampling(tokenizer: HFTokenizer, card: Card, temperature: float, vocabulary: int) -> GenerationConfig:
    """``generation_config.json``: the whole distribution at a temperature, as :mod:`pitlm.engines.generators` samples.

    ``top_k`` is the whole ``vocabulary``, because transformers takes 50 if it is left out, and SGLang and TGI refuse 0.
    At temperature 0 the file says ``do_sample: false`` and no temperature: transformers saves none beside it.
    """
    sampled = {"temperature": temperature, "top_k": vocabulary} if temperature > 0 else {}
    more = {"max_new_tokens": card.max_new_tokens, **special_ids(tokenizer)}
    return GenerationConfig(do_sample=temperature > 0, top_p=1.0, **sampled, **more)


def exported_temperature(source: Path) -> float | None:
    """The sampling temperature in an earlier export; None if ``source`` is no export."""
    if not (source / "generation_config.json").is_file():
        return None
    known = GenerationConfig.from_pretrained(source)
    if known.max_new_tokens is None:  # the checkpoint of a training
        return None
    return float(known.temperature) if known.do_sample else 0.0


def _tokenizer(source: Path, card: Card) -> HFTokenizer:
    tokenizer = load_tokenizer(source)
    ask = card.ask if card.kind == "improver" else None
    if isinstance(shown := tokenizer.chat_template, dict):  # several templates by name
        tokenizer.chat_template = {name: served_template(one, ask) for name, one in shown.items()}
    else:
        tokenizer.chat_template = served_template(shown, ask)
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)  # transformers would write down how the tokenizer was opened here
    return tokenizer
