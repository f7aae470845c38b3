"""Policy and improver: models that write."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.errors import InputError
from pitlm.core.nouns import Advance, Answer, Prompt
from pitlm.data.template import encode_completion, encode_prompts
from pitlm.engines.decoder import Decoder, DecodingRow, left_padded
from pitlm.engines.engine import seed_of
from pitlm.models.adapters import Bases, Checkpoint
from pitlm.models.loading import Card, load_tokenizer, window_of
from pitlm.models.machine import device

READ = 32
"""Number of answers whose likelihoods are read in one pass. Their logits are the largest tensor."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 128,
    advance: Advance | None = None,
) -> list[list[int]]:
    """Sample one completion per prompt: token ids, end token included if it was reached.

    ``temperature`` 0 is greedy; the full distribution is sampled otherwise (no top-k, no top-p), which is the
    distribution that RL trained. Each completion has a seed of its own: same seed and place, same completion.

    Args:
        batch_size: rows of the longest kind that are written at once; of shorter rows, more.
    """
    if not prompt_ids:
        return []
    was_training = model.training
    model.eval()  # in training, gradient checkpointing would keep the model from reading its cache
    rows = [
        DecodingRow(number, ids, max_new_tokens, temperature, seed_of(seed, number))
        for number, ids in enumerate(prompt_ids)
    ]
    tokens = batch_size * max(row.room for row in rows)
    decoder = Decoder(model, end=tokenizer.eos_token_id, pad=tokenizer.pad_token_id, tokens_per_batch=tokens)
    for row in rows:
        decoder.submit(row)
    written: dict[Hashable, list[int]] = {}
    while len(written) < len(rows):
        ended = decoder.step()
        written |= {row.key: row.written for row in ended}
        if advance is not None and ended:
            advance(len(ended))
    model.train(was_training)
    return [written[row.key] for row in rows]


class Generator(Checkpoint):
    """A model that writes. Use :class:`Policy` or :class:`Improver`."""

    batch_size = 128
    """Conversations at a time."""

    def encode(self, prompt: Prompt, reference: str = "") -> list[int]:
        """Token ids of x and, for an improver, y_ref. Every round of a loop that begins so fits the window.

        Raises:
            InputError: x leaves no room for an answer (for an improver: x with y_ref, or x with a proposal).
        """
        [conversation] = encode_prompts(self.tokenizer, [self.conversation(prompt, reference)])
        longest = len(conversation)
        if self.reads_reference:
            longest += max(0, self.card.max_new_tokens - len(encode_completion(self.tokenizer, reference)))
        self._check_length(longest)
        return conversation

    def _check_length(self, longest: int) -> None:
        window = window_of(self.model.config)
        if window is not None and longest + self.card.max_new_tokens > window:
            raise InputError(
                f"found a conversation of {longest} tokens, expected at most {window - self.card.max_new_tokens}: "
                f"the {self.kind}'s window of {window} less {self.card.max_new_tokens} for the answer"
            )

    def _write(self, prompts: Sequence[Prompt], references: Sequence[str], **sampling: Any) -> list[Answer]:
        """One answer for each prompt, beside its reference if the model reads references.

        Args:
            sampling: temperature, seed and advance of :func:`generate`.

        Raises:
            InputError: a conversation that leaves no room for a reply in the model's window.
        """
        conversations = [self.conversation(x, reference) for x, reference in zip(prompts, references, strict=True)]
        if not conversations:
            return []  # the tokenizer would turn no rows into one text
        prompt_ids = encode_prompts(self.tokenizer, conversations)
        self._check_length(max(map(len, prompt_ids)))
        limits: dict[str, Any] = {"max_new_tokens": self.card.max_new_tokens, "batch_size": self.batch_size}
        completions = generate(self.model, self.tokenizer, prompt_ids, **limits, **sampling)
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [
            Answer(text.strip(), generated_tokens=len(completion), prompt_tokens=len(ids))
            for text, completion, ids in zip(texts, completions, prompt_ids, strict=True)
        ]


class Policy(Generator):
    """M_P: makes the first answer. Any chat model can be one: :meth:`of_chat_model`."""

    kind = "policy"

    @classmethod
    def of_chat_model(cls, path: str | Path, *, max_new_tokens: int = 512, bases: Bases | None = None) -> Self:
        """Load a causal language model with a chat template, by path or hub name; it needs no card of pitlm.

        Args:
            max_new_tokens: longest answer.
            bases: loads the model in its dtype; default: float32.

        Raises:
            InputError: no such model there.
        """
        tokenizer = load_tokenizer(path)
        model = (bases or Bases()).load(path, tokenizer, writes=True).to(device()).eval()
        return cls(model, tokenizer, Card(cls.kind, "", max_new_tokens))

    def answer(
        self, prompts: Sequence[Prompt], *, temperature: float = 1.0, seed: int = 0, advance: Advance | None = None
    ) -> list[Answer]:
        """One answer per prompt."""
        return self._write(prompts, [""] * len(prompts), temperature=temperature, seed=seed, advance=advance)

    @torch.no_grad()
    def likelihoods(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[float, int]]:
        """log M_P(y | x) of each response in nats, and its number of tokens, both without the end token."""
        shown = encode_prompts(self.tokenizer, [self.conversation(x, "") for x in prompts])
        told = [encode_completion(self.tokenizer, y)[:-1] for y in responses]
        found = [(0.0, 0)] * len(told)
        some = sorted((i for i, ids in enumerate(told) if ids), key=lambda i: len(shown[i]) + len(told[i]))
        together = min(READ, self.batch_size)
        for start in range(0, len(some), together):
            own = some[start : start + together]
            ids, mask = left_padded([shown[i] + told[i] for i in own], self.tokenizer.pad_token_id, self.model.device)
            kept = max(len(told[i]) for i in own)
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                # Indices, not a number: a number gives a view, for which torch copies the head once for every row.
                logits_to_keep=torch.arange(-kept - 1, -1, device=self.model.device),
            )
            logp_BT = output.logits.float().log_softmax(-1).gather(2, ids[:, -kept:, None])[..., 0]
            for i, logp_T in zip(own, logp_BT, strict=True):
                found[i] = logp_T[-len(told[i]) :].sum().item(), len(told[i])
        return found


class Improver(Generator):
    """M_PIT: y ~ M_PIT(. | x, y_ref)."""

    kind = "improver"
    reads_reference = True

    def propose(
        self,
        prompts: Sequence[Prompt],
        references: Sequence[str],
        *,
        temperature: float = 0.4,
        seed: int = 0,
        advance: Advance | None = None,
    ) -> list[Answer]:
        """One proposal per (x, y_ref). The default temperature is the paper's best for PIT (0.4)."""
        return self._write(prompts, references, temperature=temperature, seed=seed, advance=advance)


WRITERS: dict[Literal["policy", "improver"], type[Generator]] = {"policy": Policy, "improver": Improver}
"""The models that write, by kind."""
