"""Policy and improver: models that write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.errors import InputError
from pitlm.core.nouns import Advance, Answer, Prompt
from pitlm.data.template import encode_completion, encode_prompts
from pitlm.models.checkpoint import Checkpoint
from pitlm.models.loading import Card, device, load_causal, load_tokenizer, window_of


@torch.no_grad()  # not inference_mode: FSDP gathers weights in place, which it forbids
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
    """Sample one completion per prompt: token ids, end token included where it was reached.

    Prompts are batched by length. ``temperature`` 0 is greedy; the full distribution is sampled otherwise
    (no top-k, no top-p), which is the distribution that RL trained. Same seed, same answers.
    """
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    completions: list[list[int]] = [[] for _ in prompt_ids]
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature > 0
        else {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    )
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(len(prompt_ids[i]) for i in chosen)
            input_ids = torch.tensor([[pad] * (width - len(prompt_ids[i])) + prompt_ids[i] for i in chosen])
            mask = torch.tensor([[0] * (width - len(prompt_ids[i])) + [1] * len(prompt_ids[i]) for i in chosen])
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=end,
                **sampling,
            )
            for i, row in zip(chosen, output[:, width:].tolist(), strict=True):
                completions[i] = row[: row.index(end) + 1] if end in row else row
            if advance is not None:
                advance(len(chosen))
    model.train(was_training)
    return completions


class Generator(Checkpoint):
    """A model that writes. Use :class:`Policy` or :class:`Improver`."""

    batch_size = 128
    """Conversations at a time, where a call does not say."""

    def _check_length(self, longest: int) -> None:
        window = window_of(self.model.config)
        if window is not None and longest + self.card.max_new_tokens > window:
            raise InputError(
                f"found a conversation of {longest} tokens, expected at most {window - self.card.max_new_tokens}: "
                f"the {self.kind}'s window of {window} less {self.card.max_new_tokens} for the answer"
            )

    def _complete(
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
        if not conversations:
            return []  # of no rows the tokenizer would decode one
        prompt_ids = encode_prompts(self.tokenizer, conversations)
        self._check_length(max(map(len, prompt_ids), default=0))
        completions = generate(
            self.model,
            self.tokenizer,
            prompt_ids,
            max_new_tokens=self.card.max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size or self.batch_size,
            advance=advance,
        )
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [
            Answer(text.strip(), generated_tokens=len(completion), prompt_tokens=len(ids))
            for text, completion, ids in zip(texts, completions, prompt_ids, strict=True)
        ]


class Policy(Generator):
    """M_P: makes the first answer. Any chat model can be one: :meth:`of_chat_model`."""

    kind = "policy"

    @classmethod
    def of_chat_model(cls, path: str | Path, *, max_new_tokens: int = 512) -> Self:
        """Load a causal language model with a chat template, by path or hub name; it needs no card of pitlm.

        Args:
            max_new_tokens: longest answer.

        Raises:
            InputError: no such model there.
        """
        tokenizer = load_tokenizer(path)
        model = load_causal(path, tokenizer).to(device()).eval()
        return cls(model, tokenizer, Card(cls.kind, "", max_new_tokens))

    def encode(self, prompt: Prompt, reference: str = "") -> list[int]:
        """Token ids of x; a policy reads no reference.

        Raises:
            InputError: x leaves no room for an answer.
        """
        conversation = encode_prompts(self.tokenizer, [self.template.policy_messages(prompt)])[0]
        self._check_length(len(conversation))
        return conversation

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int | None = None,
        advance: Advance | None = None,
    ) -> list[Answer]:
        """One answer per prompt."""
        conversations = [self.template.policy_messages(prompt) for prompt in prompts]
        return self._complete(conversations, temperature=temperature, seed=seed, batch_size=batch_size, advance=advance)


class Improver(Generator):
    """M_PIT: y ~ M_PIT(. | x, y_ref)."""

    kind = "improver"

    def encode(self, prompt: Prompt, reference: str = "") -> list[int]:
        """Token ids of x and y_ref, checked so that every round of a loop that begins with them fits the window.

        Raises:
            InputError: x with y_ref, or with a proposal in its place, leaves no room for an answer.
        """
        conversation = encode_prompts(self.tokenizer, [self.template.improver_messages(prompt, reference)])[0]
        growth = max(0, self.card.max_new_tokens - len(encode_completion(self.tokenizer, reference)))
        self._check_length(len(conversation) + growth)
        return conversation

    def propose(
        self,
        prompts: Sequence[Prompt],
        references: Sequence[str],
        *,
        temperature: float = 0.4,
        seed: int = 0,
        batch_size: int | None = None,
        advance: Advance | None = None,
    ) -> list[Answer]:
        """One proposal per (x, y_ref). The default temperature is the paper's best for PIT (0.4)."""
        conversations = [
            self.template.improver_messages(prompt, reference)
            for prompt, reference in zip(prompts, references, strict=True)
        ]
        return self._complete(conversations, temperature=temperature, seed=seed, batch_size=batch_size, advance=advance)
