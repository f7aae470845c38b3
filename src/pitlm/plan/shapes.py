"""The shape of a decoder: what its memory and its arithmetic follow from. Ours.

One family is meant, that of Llama and Qwen: gated feed-forward, rotary positions, grouped keys and values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.recipe import InitSection, ModelSection

ROLE_TOKENS = 6
"""Special tokens of a tokenizer made here."""

POCKET_WORDS = 49


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder; ``tied`` where the output head is the embedding, ``norms`` and ``biases`` a layer's own."""

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
        """Weights of all layers' matrices: those that a token is multiplied with, the head apart."""
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

    def lora(self, r: int) -> int:
        """Weights of adapters of rank r beside every matrix of every layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = (self.hidden + q) + 2 * (self.hidden + kv) + (q + self.hidden)
        return self.layers * r * (attention + 3 * (self.hidden + self.mlp))

    @property
    def kv_elements(self) -> int:
        """Cached keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @classmethod
    def of_init(cls, init: InitSection) -> Shape:
        """Of a model that is made from scratch; a word tokenizer counts the pocket world's words."""
        words = init.tokenizer == "words"
        vocabulary = POCKET_WORDS + ROLE_TOKENS if words else init.vocabulary
        width = init.hidden // init.heads
        return cls(init.layers, init.hidden, init.mlp, init.heads, init.heads, width, vocabulary, tied=True)

    @classmethod
    def of_config(cls, config: Mapping[str, Any], where: str) -> Shape:
        """Of a ``config.json``.

        Raises:
            InputError: it lacks a size, as those of other families do.
        """
        config = {**config, **config.get("text_config", {})}
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            width = int(config.get("head_dim") or hidden // heads)
            kv = int(config.get("num_key_value_heads") or heads)
            kind = config.get("model_type")
            return cls(
                int(config["num_hidden_layers"]),
                hidden,
                int(config["intermediate_size"]),
                heads,
                kv,
                width,
                int(config["vocab_size"]),
                bool(config.get("tie_word_embeddings", False)),
                norms=2 * width if kind == "qwen3" else 0,
                biases=(heads + 2 * kv) * width if kind == "qwen2" else 0,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError.at(where, found=f"no size ({error})", expected="the sizes of a decoder") from error

    @classmethod
    def of_model(cls, model: ModelSection) -> Shape:
        """Of what a recipe starts from: `init`, a folder with config.json, or a name that is known here.

        Raises:
            InputError: a name whose shape is not known without asking a hub.
        """
        if model.init is not None:
            return cls.of_init(model.init)
        assert model.base is not None
        file = Path(model.base) / "config.json"
        if file.is_file():
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError.at(file, found=f"broken JSON ({error})", expected="a model's configuration") from error
            return cls.of_config(config, str(file))
        if model.base not in KNOWN:
            raise InputError(
                f"model.base: found {model.base!r}, whose shape is not known here (no hub is asked), expected a folder "
                f"with config.json or one of {', '.join(KNOWN)}"
            )
        return KNOWN[model.base]


def _qwen2(layers: int, hidden: int, mlp: int, heads: int, kv: int, *, tied: bool = True) -> Shape:
    width = hidden // heads
    return Shape(layers, hidden, mlp, heads, kv, width, 151_936, tied, biases=(heads + 2 * kv) * width)


def _llama(layers: int, hidden: int, mlp: int, heads: int, width: int, *, tied: bool) -> Shape:
    return Shape(layers, hidden, mlp, heads, 8, width, 128_256, tied)


KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(24, 896, 4_864, 14, 2),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(36, 2_048, 11_008, 16, 2),
    "Qwen/Qwen2.5-7B-Instruct": Shape(28, 3_584, 18_944, 28, 4, 128, 152_064, False, biases=4_608),
    "Qwen/Qwen3-8B": Shape(36, 4_096, 12_288, 32, 8, 128, 151_936, False, norms=256),
    "meta-llama/Llama-3.2-1B-Instruct": _llama(16, 2_048, 8_192, 32, 64, tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": _llama(28, 3_072, 8_192, 24, 128, tied=True),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(32, 4_096, 14_336, 32, 128, tied=False),
    "meta-llama/Llama-3.3-70B-Instruct": _llama(80, 8_192, 28_672, 64, 128, tied=False),
}
"""Published configurations, by hub name."""
