"""Policy and improver: models that write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.errors import InputError
from pitlm.core.nouns import Advance, Answer, Prompt
from pitlm.data.template import encode_completion, encode_prompts
from pitlm.models.adapters import Bases, Checkpoint
from pitlm.models.loading import Card, device, load_tokenizer, window_of

READ = 32
"""Number of answers whose likelihoods are read in one pass. Their logits are the largest tensor."""


def left_padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token ids that all end in the last column, and the mask of their tokens."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids).to(device), torch.tensor(mask).to(device)


def write_batch(
    model: PreTrainedModel, rows: Sequence[list[int]], *, pad_token_id: int, eos_token_id: int, **options: Any
) -> list[list[int]]:
    """One completion for each row of token ids by the model's own ``generate``; ends with the end token if reached."""
    ids, mask = left_padded(rows, pad_token_id, model.device)
    output = model.generate(
        input_ids=ids, attention_mask=mask, pad_token_id=pad_token_id, eos_token_id=eos_token_id, **options
    )
    completions: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return [ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids for ids in completions]


@torch.no_grad()  # not inference_mode, which forbids FSDP to gather weights in place
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

    Prompts are batched by length. ``temperature`` 0 is greedy; the full distribution is sampled otherwise
    (no top-k, no top-p), which is the distribution that RL trained. Same seed, same answers.
    """
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    completions: list[list[int]] = [[] for _ in prompt_ids]
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    sampling = {"do_sample": True, **drawn} if temperature > 0 else {"do_sample": False, **dict.fromkeys(drawn)}
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            written = write_batch(
                model,
                [prompt_ids[i] for i in chosen],
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                max_new_tokens=max_new_tokens,
                **sampling,
            )
            for i, ids in zip(chosen, written, strict=True):
                completions[i] = ids
            if advance is not None:
                advance(len(chosen))
    model.train(was_training)
    return completions


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
        completions = generate(
            self.model,
            self.tokenizer,
            prompt_ids,
            max_new_tokens=self.card.max_new_tokens,
            batch_size=self.batch_size,
            **sampling,
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
                logits_to_keep=kept + 1,
            )
            logp_BTV = torch.log_softmax(output.logits[:, :-1].float(), -1)
            logp_BT = logp_BTV.gather(2, ids[:, -kept:, None])[..., 0]
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
