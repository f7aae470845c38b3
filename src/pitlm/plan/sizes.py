"""The inputs of a plan: the shape of a decoder, and the number of pairs with their lengths.

Decoders are those of the family of Llama and Qwen: gated feed-forward, rotary positions, grouped keys and values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pitlm.core.errors import InputError, loading
from pitlm.core.recipe import DataSection, LoraSection, ModelSection, Recipe
from pitlm.data.dataset import load_preferences
from pitlm.plan.hardware import PUBLISHED

ROLE_TOKENS = 6
"""Special tokens of a tokenizer that pitlm makes."""

POCKET_WORDS = 49

MATRICES = (*(f"self_attn.{side}_proj" for side in "qkvo"), *(f"mlp.{side}_proj" for side in ("gate", "up", "down")))
"""Names of a layer's matrices, in the family of Llama."""

CONFIG_KEYS: Mapping[str, str] = PUBLISHED["keys"]
"""The key of each size of a :class:`Shape` in a Hugging Face configuration."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        tied: whether the output head is the embedding.
        norms, biases: further weights of each layer.
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    norms: int = 0
    biases: int = 0

    @property
    def linear(self) -> int:
        """Weights of the matrices of all layers, without the head."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def head(self) -> int:
        """Weights of the projection onto the vocabulary."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights, embedding, norms and biases included."""
        small = self.layers * (2 * self.hidden + self.norms + self.biases) + self.hidden
        return self.linear + self.head * (1 if self.tied else 2) + small

    def adapted(self, targets: str | list[str]) -> list[tuple[int, str]]:
        """The layer and the name of each matrix that gets an adapter, as PEFT reads ``target_modules``.

        All matrices, if none has a name of the family of Llama.
        """
        names = {f"model.layers.{layer}.{name}": (layer, name) for layer in range(self.layers) for name in MATRICES}
        wanted = [targets] if isinstance(targets, str) else [rf"(.*\.)?{re.escape(ending)}" for ending in targets]
        found = [at for name, at in names.items() if any(re.fullmatch(pattern, name) for pattern in wanted)]
        return found or list(names.values())

    def lora(self, peft: LoraSection) -> int:
        """Weights of the adapters."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        others = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": q}  # the side that is not hidden
        return sum(
            peft.r * (self.hidden + others.get(name.partition(".")[2], self.mlp))
            for _, name in self.adapted(peft.target_modules)
        )

    def trained_share(self, peft: LoraSection | None) -> float:
        """Share of the layers through which gradients flow: with adapters, the lowest adapted layer and all above."""
        if peft is None:
            return 1.0
        return 1 - min(layer for layer, _ in self.adapted(peft.target_modules)) / self.layers

    @property
    def kv_elements(self) -> int:
        """Cached keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @classmethod
    def of_config(cls, config: Mapping[str, Any], where: str) -> Shape:
        """The shape that a ``config.json`` describes.

        Raises:
            InputError: the configuration lacks a size, as in other families.
        """
        config = {**config, **config.get("text_config", {})}
        with loading(where, "configuration of a decoder"):
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            usual = {"num_key_value_heads": heads, "head_dim": hidden // heads, "tie_word_embeddings": False}
            given = {**usual, **{key: value for key, value in config.items() if value is not None}}
            sizes: dict[str, Any] = {name: int(given[key]) for name, key in CONFIG_KEYS.items()}
        width, kind = sizes["head_dim"], given.get("model_type")
        biases = (heads + 2 * sizes["kv_heads"]) * width if kind == "qwen2" else 0
        return cls(**{**sizes, "tied": bool(sizes["tied"])}, norms=2 * width if kind == "qwen3" else 0, biases=biases)

    @classmethod
    def of_model(cls, model: ModelSection) -> Shape:
        """The shape of the model that a recipe starts from: `init`, a folder with config.json, or a name in ``KNOWN``.

        A tokenizer of words is taken to have the words of the pocket world.

        Raises:
            InputError: another name. No hub is asked.
        """
        if (init := model.init) is not None:
            vocabulary = POCKET_WORDS + ROLE_TOKENS if init.tokenizer == "words" else init.vocabulary
            return cls(init.layers, init.hidden, init.mlp, init.heads, init.heads, init.head_dim, vocabulary, tied=True)
        assert model.base is not None
        folder = Path(model.base)
        if folder.suffix.lower() == ".gguf":
            from pitlm.models.loading import checkpoint_of  # here, because it takes seconds to import torch

            folder = Path(checkpoint_of(folder))
        file = folder / "config.json"
        if file.is_file():
            with loading(file, "model's configuration"):
                return cls.of_config(json.loads(file.read_text(encoding="utf-8")), str(file))
        if model.base not in KNOWN:
            raise InputError(
                f"model.base: found {model.base!r}, whose shape is not known here (no hub is asked), expected a folder "
                f"with config.json or one of {', '.join(KNOWN)}"
            )
        return KNOWN[model.base]


KNOWN = {name: Shape(**sizes) for name, sizes in PUBLISHED["models"].items()}
"""Published configurations, by hub name."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The number of pairs, and their mean lengths in tokens.

    Attributes:
        marks: tokens that a chat template puts around one turn and its answer.
        prompts: distinct prompts per pair.
        labelled: share of the pairs that are made which get a label.
        sampled: length of the answers that RL samples; the data's unless it is known.
    """

    pairs: int
    prompt: float
    chosen: float
    rejected: float
    marks: float = 20.0
    prompts: float = 1.0
    labelled: float = 1.0
    sampled: float | None = None


WORLDS = {name: Workload(**known) for name, known in PUBLISHED["worlds"].items()}
HUB = {name: Workload(**known) for name, known in PUBLISHED["sources"].items()}
"""Data sets by their names on the hub: the rows of the split train, and their lengths."""


def known_workload(recipe: Recipe) -> tuple[Workload, str]:
    """The workload of the recipe's own source, and where the figures come from."""
    data = recipe.data
    if data.world:
        known = WORLDS[data.world]
        pairs = round((data.pairs or known.pairs) * known.labelled)
        return replace(known, pairs=pairs), f"lengths known for the world {data.world}"
    if data.source in HUB:
        return HUB[data.source], f"lengths known for {data.source}"
    half = data.max_response_tokens / 2
    work = Workload(data.pairs or 10_000, data.max_prompt_tokens / 2, half, half)
    return work, "assumed: half of the lengths that the recipe allows; --data measures them"


def measured_workload(source: str, limits: DataSection) -> tuple[Workload, str]:
    """Count pairs and their lengths. Four characters count as a token, as in English: there may be no tokenizer here.

    Lengths are cut to the limits of the recipe. Otherwise a few long prompts would dominate the mean.

    Raises:
        InputError: a source that cannot be read.
    """
    kept = load_preferences(source, skip_invalid=True, columns=limits.columns, progress=True).preferences
    most = (limits.max_prompt_tokens, limits.max_response_tokens, limits.max_response_tokens)
    letters = [(sum(len(m.content) for m in p.prompt.messages), len(p.chosen), len(p.rejected)) for p in kept]
    x, w, l = (fmean(min(row[part] / 4, limit) for row in letters) for part, limit in enumerate(most))
    distinct = len({pair.prompt.key for pair in kept}) / len(kept)
    return Workload(len(kept), x, w, l, prompts=distinct), f"{source}, four characters a token"
