"""A local chat model: completes conversations, whatever they ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pitlm.core.nouns import Advance, Answer
from pitlm.models.generators import Generator
from pitlm.models.loading import Card, device, load_causal, load_tokenizer


class LocalChat(Generator):
    """Any causal language model of Hugging Face with its chat template; no checkpoint of pitlm's is needed."""

    kind = "policy"

    @classmethod
    def from_pretrained(  # type: ignore[override]  # anybody's model has no card to take the length from
        cls, path: str | Path, dtype: str = "float32", *, max_new_tokens: int = 512
    ) -> Self:
        """Load a model by path or hub name.

        Args:
            max_new_tokens: longest reply.

        Raises:
            InputError: nothing loadable there.
        """
        tokenizer = load_tokenizer(path)
        card = Card(cls.kind, "", max_new_tokens)
        return cls(load_causal(path, tokenizer, dtype).to(device()).eval(), tokenizer, card)

    def complete(
        self,
        conversations: Sequence[list[dict[str, str]]],
        *,
        temperature: float,
        seed: int,
        batch_size: int | None = None,
        advance: Advance | None = None,
    ) -> list[Answer]:
        """One reply per conversation, each of which ends with the user's turn.

        Raises:
            InputError: a conversation that leaves no room for a reply in the model's window.
        """
        return self._answer(conversations, temperature, seed, batch_size, advance)
