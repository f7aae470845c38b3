"""Checkpoints of training stages, opened as adapters over one base model in memory or by themselves. Ours.

A stage trains its adapter on the merged weights of the stage that it starts from. Over the base of the run a chain of
stages is one adapter of their summed rank, exactly: W + s_1 B_1 A_1 + s_2 B_2 A_2 = W + [s_1 B_1, s_2 B_2] [A_1; A_2].
"""

from __future__ import annotations

import copy
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.recipe import Quantization
from pitlm.data.template import Template
from pitlm.models.loading import Card, Kind, checkpoint_of, device, load_card, load_model, load_shape, load_tokenizer
from pitlm.models.trees import enable_trees

if TYPE_CHECKING:
    from peft import PeftModel

OVER_BASE = "over-base"
"""Folder inside a checkpoint: its adapter in PEFT's format; ``adapter_config.json`` names the base."""

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HEAD = PREFIX + "score.weight"
A, B = ".lora_A.weight", ".lora_B.weight"


def save_over_base(adapter: Path, start: Path, model: Path) -> None:
    """Write, beside the merged weights in ``model``, its adapter over the base of the run.

    Args:
        adapter: folder of the adapter that the stage trained on the weights of ``start``, in PEFT's format.
        start: the base itself, or a checkpoint with an adapter over the base; then the two adapters are joined.

    Adapters of embeddings cannot be joined in this way: then nothing is written, and only the merged weights remain.
    """
    from peft import LoraConfig

    own = load_file(adapter / WEIGHTS)
    if any("lora_embedding" in name for name in own):
        return
    settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    own = {n: w * (settings["lora_alpha"] / settings["r"]) if n.endswith(B) else w for n, w in own.items()}
    start = Path(checkpoint_of(start))
    base, before = str(start.resolve() if start.is_dir() else start), dict[str, Tensor]()
    if (start / OVER_BASE).is_dir():
        base, before = base_name(start), load_file(start / OVER_BASE / WEIGHTS)
    joined = _join(before, own)
    if HEAD in own:
        joined[HEAD] = own[HEAD]
    names = sorted(name.removeprefix(PREFIX).removesuffix(A) for name in joined if name.endswith(A))
    rank = max(len(weight) for name, weight in joined.items() if name.endswith(A))
    config = LoraConfig(
        base_model_name_or_path=base,
        task_type=settings["task_type"],
        r=rank,
        lora_alpha=rank,
        target_modules=names,
        modules_to_save=["score"] if HEAD in own else None,
        inference_mode=True,
    )
    folder = model / OVER_BASE
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in joined.items()}, folder / WEIGHTS)
    config.save_pretrained(str(folder))


def _join(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factors of the sum of two adapters whose scale is 1; zeros replace a factor that one adapter lacks."""
    joined: dict[str, Tensor] = {}
    ranks = [max((len(w) for n, w in factors.items() if n.endswith(A)), default=0) for factors in (first, second)]
    for name, some in sorted({**second, **first}.items()):
        if name.endswith((A, B)):
            empty = [some.new_zeros((r, some.shape[1]) if name.endswith(A) else (some.shape[0], r)) for r in ranks]
            factors = [first.get(name, empty[0]), second.get(name, empty[1])]
            joined[name] = torch.cat(factors, 0 if name.endswith(A) else 1)
    return joined


def base_name(folder: Path) -> str:
    """The path or hub name of the base under a checkpoint's adapter."""
    name: str = json.loads((folder / OVER_BASE / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return name


@dataclass
class Bases:
    """Opens checkpoints for one thread; checkpoints that are adapters over one base share the base's weights in memory.

    Each call of an opened model first activates the model's own adapter. A checkpoint without an adapter, or whose base
    is gone, is loaded with its own merged weights, which are the same model.

    Attributes:
        dtype: of the weights.
        quantize: how bases, and models without a base, are held. In 4 bits a base with an adapter and merged weights
            are no longer the same to the last figure: one rounds the base, the other the sum.
    """

    dtype: str = "float32"
    quantize: Quantization | None = None
    _open: dict[str, _Shared | None] = field(default_factory=dict)

    def load(self, path: str | Path, tokenizer: PreTrainedTokenizerBase, *, writes: bool) -> PreTrainedModel:
        """Load the causal model in ``path`` if it ``writes``, else its model with one logit.

        Raises:
            InputError: nothing loadable there.
        """
        path = Path(path)
        shared = self._shared(path, tokenizer) if (path / OVER_BASE).is_dir() else None
        if shared is not None:
            return shared.writer(path) if writes else shared.scorer(path)
        return load_model(path, tokenizer, self.dtype, self.quantize, writes=writes)

    def _shared(self, path: Path, tokenizer: PreTrainedTokenizerBase) -> _Shared | None:
        name = base_name(path)
        if name not in self._open:
            try:
                base = load_model(name, tokenizer, self.dtype, self.quantize)
                self._open[name] = _Shared(base.to(device()).eval())
            except InputError as error:
                logging.getLogger(__name__).warning("%s; loading each model by itself", error)
                self._open[name] = None
        return self._open[name]


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
            bases: opens the model beside others, over the base that they share, in their dtype. Without it the merged
                weights are loaded in float32.
            weights: without them, a model that writes can only encode.

        Raises:
            InputError: no checkpoint of this kind there.
        """
        card = load_card(path, cls.kind)
        tokenizer = load_tokenizer(path)
        if not weights:
            return cls(load_shape(path), tokenizer, card)
        load = load_model if bases is None else bases.load
        model = load(path, tokenizer, writes=card.writes)
        opened = cls(model.to(device()).eval(), tokenizer, card)
        opened.folder = Path(path)
        return opened

    def conversation(self, prompt: Prompt, reference: str) -> list[dict[str, str]]:
        """What the model reads before an answer: x, and y_ref with the ask if it reads references."""
        if self.reads_reference:
            return self.template.improver_messages(prompt, reference)
        return self.template.policy_messages(prompt)


class _Shared:
    """A causal model with adapters, of which one is active."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.adapters: dict[Path, str] = {}
        self.heads: dict[Path, Tensor] = {}
        self.active = ""
        self.peft: PeftModel | None = None

    def writer(self, path: Path) -> PreTrainedModel:
        """The causal model with this checkpoint's adapter."""
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
        self._add(path)
        setattr(view, view.base_model_prefix, self.model.base_model)
        head = self.heads[path].to(self.model.device, self.model.dtype)
        view.score.load_state_dict({"weight": head}, assign=True)
        left = [name for name, weight in view.named_parameters() if weight.is_meta]
        assert not left, left
        enable_trees(view)
        return self._switched(view, path).eval()

    def _switched(self, view: PreTrainedModel, path: Path) -> PreTrainedModel:
        name = self._add(path)

        def switch(*_: Any) -> None:
            # Layers read the kind of attention from the one configuration that all models share.
            self.model.config._attn_implementation = view.config._attn_implementation
            if self.active != name:
                assert self.peft is not None
                self.peft.base_model.set_adapter(name, inference_mode=True)
                self.active = name

        view.register_forward_pre_hook(switch)
        return view

    def _add(self, path: Path) -> str:
        # Imported here, because peft also imports bitsandbytes where it is installed; whole models need neither.
        from peft import LoraConfig, PeftModel, set_peft_model_state_dict

        if path in self.adapters:
            return self.adapters[path]
        name = self.adapters[path] = f"adapter{len(self.adapters)}"
        weights = load_file(path / OVER_BASE / WEIGHTS)
        if HEAD in weights:
            self.heads[path] = weights.pop(HEAD)
        config = LoraConfig.from_pretrained(str(path / OVER_BASE))
        config.modules_to_save, config.task_type = None, None  # a head stays with its own model
        if self.peft is None:
            self.peft = PeftModel(self.model, config, adapter_name=name)
        else:
            self.peft.add_adapter(name, config)
        set_peft_model_state_dict(self.peft, weights, adapter_name=name)
        self.peft.requires_grad_(False)
        self.active = ""
        return name
