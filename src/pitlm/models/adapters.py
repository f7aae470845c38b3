"""Checkpoints of training stages, opened as adapters over one base model or by themselves. Not in the paper."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.nouns import Prompt
from pitlm.core.recipe import Quantization
from pitlm.data.template import Template
from pitlm.models.loading import Card, Kind, load_card, load_model, load_shape, load_tokenizer
from pitlm.models.lora import attach, base_name, is_adapter, whole_name
from pitlm.models.machine import device
from pitlm.models.trees import enable_trees

if TYPE_CHECKING:
    from peft import PeftModel

BARE = "no adapter"
"""What is active while a base itself writes."""


@dataclass
class Bases:
    """Opens checkpoints for one thread; checkpoints that are adapters over one base share the base's weights in memory.

    Each call of an opened model first activates the model's own adapter. A checkpoint with whole weights is loaded by
    itself, unless it is a base that is open and is to write: then the adapters are switched off at each call.

    Attributes:
        dtype: of the weights.
        quantize: how bases, and models without a base, are held. In 4 bits, a base with an adapter differs slightly
            from the merged weights: the former rounds the base, the latter the sum.
    """

    dtype: str = "float32"
    quantize: Quantization | None = None
    _open: dict[str, _Shared] = field(default_factory=dict)

    def load(self, path: str | Path, tokenizer: PreTrainedTokenizerBase, *, writes: bool) -> PreTrainedModel:
        """Load the causal model in ``path`` if it ``writes``, else its model with one logit.

        Raises:
            InputError: nothing loadable there, or the base of an adapter is gone.
        """
        if not is_adapter(path):
            if writes and (shared := self._open.get(whole_name(path))):
                return shared.writer(None)
            return load_model(path, tokenizer, self.dtype, self.quantize, writes=writes)
        name = base_name(path)
        if name not in self._open:
            self._open[name] = _Shared(load_model(name, tokenizer, self.dtype, self.quantize).to(device()).eval())
        return self._open[name].writer(Path(path)) if writes else self._open[name].scorer(Path(path))


class Checkpoint:
    """A model with its tokenizer, its card and its template; the base of the classes that each open one ``kind``.

    Attributes:
        folder: the checkpoint's folder; None for a model that was not loaded from a checkpoint.
        reads_reference: whether the model reads y_ref and the ask after x.
    """

    kind: Kind
    folder: Path | None = None
    reads_reference = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: Card) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.card = card
        self.template = Template(card.ask)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, bases: Bases | None = None, weights: bool = True) -> Self:
        """Load a checkpoint that a training stage wrote.

        Args:
            bases: opens the model over the base that it shares with other models, in the dtype of ``bases``. None: the
                model is loaded in float32, with its adapter merged.
            weights: without them, a model that writes can only encode.

        Raises:
            InputError: no checkpoint of this kind there.
        """
        card = load_card(path, cls.kind)
        tokenizer = load_tokenizer(path)
        if not weights:
            return cls(load_shape(path), tokenizer, card)
        load = load_model if bases is None else bases.load
        opened = cls(load(path, tokenizer, writes=card.writes).to(device()).eval(), tokenizer, card)
        opened.folder = Path(path)
        return opened

    def conversation(self, prompt: Prompt, reference: str) -> list[dict[str, str]]:
        """The messages before an answer: x and, for a model that reads references, y_ref and the ask."""
        if self.reads_reference:
            return self.template.improver_messages(prompt, reference)
        return self.template.policy_messages(prompt)


class _Shared:
    """A causal model with adapters, of which one is active."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.adapters: dict[Path, tuple[str, Tensor | None]] = {}
        self.active = ""
        self.peft: PeftModel | None = None

    def writer(self, path: Path | None) -> PreTrainedModel:
        """The causal model with this checkpoint's adapter, or with none."""
        view: PreTrainedModel = copy.copy(self.model)  # the same modules
        view._forward_pre_hooks = OrderedDict()
        view.config = copy.deepcopy(self.model.config)
        return self._switched(view, path)

    def scorer(self, path: Path) -> PreTrainedModel:
        """A model with one logit over the same backbone."""
        config = copy.deepcopy(self.model.config)
        config.num_labels = 1
        with torch.device("meta"):
            view: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        setattr(view, view.base_model_prefix, self.model.base_model)
        head = self._add(path)[1]
        assert head is not None
        view.score.load_state_dict({"weight": head.to(self.model.device, self.model.dtype)}, assign=True)
        left = [name for name, weight in view.named_parameters() if weight.is_meta]
        assert not left, left
        enable_trees(view)
        return self._switched(view, path).eval()

    def _switched(self, view: PreTrainedModel, path: Path | None) -> PreTrainedModel:
        name = self._add(path)[0] if path else BARE

        def switch(*_: Any) -> None:
            # Layers read the kind of attention from the one configuration that all models share.
            self.model.config._attn_implementation = view.config._attn_implementation
            if self.active != name:
                assert self.peft is not None
                if name == BARE:
                    self.peft.base_model.disable_adapter_layers()
                else:
                    self.peft.base_model.enable_adapter_layers()
                    self.peft.base_model.set_adapter(name, inference_mode=True)
                self.active = name

        view.register_forward_pre_hook(switch)
        return view

    def _add(self, path: Path) -> tuple[str, Tensor | None]:
        """The name of an adapter, and the head of its model. The first call attaches the adapter."""
        if path not in self.adapters:
            name = f"adapter{len(self.adapters)}"
            self.peft, head = attach(self.peft or self.model, path, name)
            self.peft.requires_grad_(False)
            self.adapters[path], self.active = (name, head), ""
        return self.adapters[path]
