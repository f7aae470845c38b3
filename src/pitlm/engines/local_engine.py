"""An engine for a policy or an improver in this process. Not in the paper."""

from __future__ import annotations

from typing import Self

from pitlm.core.nouns import Answer
from pitlm.engines.decoder import TOKENS_PER_BATCH, Decoder, DecodingRow
from pitlm.engines.engine import AHEAD, Engine, Finished, ModelSource, WriteRequest
from pitlm.engines.generators import WRITERS, Generator


class LocalEngine(Engine):
    """A policy or an improver, whose answers a :class:`Decoder` writes.

    Args:
        tokens_per_batch: most tokens of the answers in flight, their prompts included.
    """

    pending = 0

    def __init__(self, model: Generator, tokens_per_batch: int = TOKENS_PER_BATCH) -> None:
        end, pad = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
        self.model = model
        self.decoder = Decoder(model.model, end=end, pad=pad, tokens_per_batch=tokens_per_batch)
        self.exact = self.decoder.own and model.model.device.type == "cpu"

    @classmethod
    def open(cls, source: ModelSource) -> Self:
        """Load the checkpoint in ``source.folder``."""
        assert source.folder is not None
        model = WRITERS[source.kind].from_pretrained(source.folder, bases=source.bases)
        return cls(model, source.tokens_per_batch or TOKENS_PER_BATCH)

    @property
    def hungry(self) -> bool:
        return self.decoder.waiting_tokens < AHEAD * self.decoder.tokens

    def submit(self, request: WriteRequest) -> None:
        ids = self.model.encode(request.prompt, request.reference)
        limit = self.model.card.max_new_tokens
        self.decoder.submit(DecodingRow(request.key, ids, limit, request.temperature, request.seed))
        self.pending += 1

    def step(self) -> list[Finished]:
        rows = self.decoder.step()
        if not rows:
            return []
        self.pending -= len(rows)
        texts = self.model.tokenizer.batch_decode([row.written for row in rows], skip_special_tokens=True)
        return [
            Finished(row.key, Answer(text.strip(), len(row.written), len(row.prompt)))
            for row, text in zip(rows, texts, strict=True)
        ]
