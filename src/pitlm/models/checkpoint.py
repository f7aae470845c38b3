"""A checkpoint of a training stage, opened: the model with its tokenizer, its card and its template."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.nouns import Prompt
from pitlm.data.template import Template
from pitlm.models.adapters import Bases
from pitlm.models.loading import Card, Kind, device, load_card, load_model, load_shape, load_tokenizer


class Checkpoint:
    """What models that write and models that score have in common; each class opens one ``kind``.

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
