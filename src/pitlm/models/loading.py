"""Loading, making and saving checkpoints, with the settings that every model here needs."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pitlm.core.errors import InputError, loading
from pitlm.core.recipe import Quantization
from pitlm.data.template import PLAIN_CHAT_TEMPLATE, check_template
from pitlm.io.atomic import write_text
from pitlm.models.gguf import converted
from pitlm.models.lora import base_name, is_adapter, merged, save_adapter
from pitlm.models.quantization import in_four_bits, keep_gradients
from pitlm.models.scratch import PAD, special_ids
from pitlm.models.trees import enable_trees
from pitlm.models.weights import SAFELY, check_weights

# "<|endoftext|>" is spare in models that end a turn with another token, as SmolLM2 does.
SPARE_PAD_TOKENS = (
    "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>", "[PAD]", "<|endoftext|>", PAD,
)  # fmt: skip

HFTokenizer = PreTrainedTokenizerBase
Kind = Literal["policy", "improver", "reward", "gap"]


@dataclass(frozen=True, slots=True)
class Card:
    """``pit.json``: what pitlm needs to know of a checkpoint beside its weights."""

    kind: Kind
    ask: str
    max_new_tokens: int

    @property
    def writes(self) -> bool:
        """Whether the model writes; otherwise it scores."""
        return self.kind in ("policy", "improver")

    def save(self, folder: Path) -> None:
        write_text(folder / "pit.json", json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Card | None:
        path = Path(folder) / "pit.json"
        if not path.is_file():
            return None
        with loading(path, "model card"):
            card = cls(**json.loads(path.read_text(encoding="utf-8")))
            if card.kind not in get_args(Kind) or not isinstance(card.ask, str) or not card.max_new_tokens > 0:
                raise ValueError(f"found {card.kind!r}, {card.ask!r}, {card.max_new_tokens!r}, expected pitlm's card")
        return card


def load_card(path: str | Path, kind: Kind) -> Card:
    """The card of a checkpoint, checked to be of the wanted kind.

    Raises:
        InputError: no such folder, no card, or a model of another kind.
    """
    card = Card.load(path)
    if card is None:
        found = "no pit.json" if Path(path).is_dir() else "no such folder"
        raise InputError(f"{path}: found {found}, expected a model trained as {kind} ('model' in its stage)")
    if card.kind != kind:
        raise InputError(f"{path}: found a model trained as {card.kind}, expected one trained as {kind}")
    return card


def checkpoint_of(path: str | Path) -> str | Path:
    """The checkpoint to load: ``path`` itself or, for a GGUF file, the checkpoint that it is converted to.

    Raises:
        InputError: the GGUF file cannot be converted.
    """
    if Path(path).suffix.lower() != ".gguf":
        return path
    with loading(path, "GGUF file"):
        return converted(Path(path))


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer whose pad differs from its end token, with a chat template, padding on the right.

    A sequence-classification model reads its score at the last token that is not pad: with pad equal to
    end, the end token is never read (and an answer that never ends scores like one that does).

    Raises:
        InputError: nothing loadable there, no end token, or a chat template that does not fit (``check_template``).
    """
    with loading(path, "tokenizer" if Path(path).exists() else "model: no such folder, and none on the hub"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(checkpoint_of(path)), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise InputError(f"{path}: found a tokenizer without end token, expected one that has it")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = tokenizer.get_vocab()
        spare = next((token for token in SPARE_PAD_TOKENS if token in known and token != tokenizer.eos_token), PAD)
        tokenizer.add_special_tokens({"pad_token": spare})
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    tokenizer.padding_side = "right"
    check_template(tokenizer, path)
    return tokenizer


def window_of(config: Any) -> int | None:
    """Tokens that a model with this configuration can see at once; None if it sets no limit."""
    window: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return window


def load_model(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str = "float32",
    quantize: Quantization | None = None,
    *,
    writes: bool = True,
) -> PreTrainedModel:
    """A model fitted to the tokenizer (pad id, size of the embedding); an adapter is merged into its base.

    Args:
        quantize: how the matrices of the layers are held; embedding, head and norms keep their dtype. An adapter is
            merged before.
        writes: load a causal language model; otherwise a sequence-classification model with one logit, whose head is
            new if the checkpoint has none.

    Raises:
        InputError: nothing loadable there, weights that are missing or not finite, the base of an adapter is gone, or
            the library for the quantization is missing.
    """
    auto: Any = transformers.AutoModelForCausalLM if writes else transformers.AutoModelForSequenceClassification
    options: dict[str, Any] = {} if writes else {"num_labels": 1}
    source: str | None = str(checkpoint_of(path))
    if is_adapter(path):
        whole = merged(load_model(base_name(path), tokenizer, dtype, writes=writes), Path(path))
        if quantize is None:
            return whole
        auto, source, options = type(whole), None, {"config": whole.config, "state_dict": whole.state_dict()}
    options |= in_four_bits(quantize, dtype)
    with loading(path, "model"):
        model: PreTrainedModel
        model, report = auto.from_pretrained(source, dtype=getattr(torch, dtype), **SAFELY, **options)
    # A model that writes has no head that scores. A model that was trained to score needs its head.
    backbone, card = f"{model.base_model_prefix}.", Card.load(path)
    headless = not writes and (card is None or card.writes)
    missing = [name for name in report["missing_keys"] if not headless or name.startswith(backbone)]
    check_weights(path, missing, model.named_parameters())
    keep_gradients(model)
    _fit(model, tokenizer)
    if not writes:
        enable_trees(model)
    return model


def _fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model the ids of the tokenizer. A token that is new to the model gets the mean of the old weights.

    Nothing is drawn, so each loading of a base gives the same model.
    """
    old, new = model.get_input_embeddings().num_embeddings, len(tokenizer)
    if new > old:
        model.resize_token_embeddings(new, mean_resizing=False)
        with torch.no_grad():
            for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
                layer.weight[old:] = layer.weight[:old].mean(0, dtype=torch.float32).to(layer.weight.dtype)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        # Not the base's own settings: their penalties and end tokens would make RL and inference sample differently.
        model.generation_config = transformers.GenerationConfig(**special_ids(tokenizer))


def load_shape(path: str | Path) -> PreTrainedModel:
    """A causal language model without its weights; it knows its window and the names of its modules.

    Raises:
        InputError: no configuration of a causal language model there.
    """
    with loading(path, "model"), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(str(checkpoint_of(path)), trust_remote_code=False)
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
    return model


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    card: Card,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
    start: Path | None = None,
) -> None:
    """Write one loadable checkpoint: safetensors, tokenizer with its chat template, card.

    Args:
        weights: whole weights, if the model's own are sharded over processes.
        start: for a model that was trained with an adapter, the checkpoint under the adapter. Then only the adapter is
            written.
    """
    if start is None:
        model.save_pretrained(folder, state_dict=weights)
    else:
        save_adapter(model, start, folder, weights)
    tokenizer.save_pretrained(folder)
    card.save(folder)


def quiet() -> None:
    """Keep the libraries' own progress bars and notices out of the way of ours.

    TRL's warning about answers without a reward prints whole conversations.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="trl|transformers|pitlm")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
