"""R_P and R_PIT: models that score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.equations import calibrated_gap
from pitlm.core.nouns import Improvement, Message, Prompt
from pitlm.models.forest import Forest, shared_prefix
from pitlm.models.loading import Card, Kind, device, load_card, load_scorer, load_tokenizer
from pitlm.models.trees import reads_trees, score_tree
from pitlm.text.template import Template, encode_completion, encode_prompts

AnyPrompt = str | Prompt | Sequence[dict[str, Any] | Message]
TOKENS_PER_BATCH = 16_384


@torch.inference_mode()
def score_ids(model: PreTrainedModel, rows: Sequence[list[int]], tokens_per_batch: int = TOKENS_PER_BATCH) -> Tensor:
    """Scores of whole token sequences, float32 on the CPU; shape (len(rows),).

    Each is read at its last token. Rows that begin alike are read as one tree, whoever asks for them.
    """
    scores = torch.zeros(len(rows))
    was_training = model.training
    model.eval()
    for chosen in _batches(rows, tokens_per_batch, trees=reads_trees(model)):
        scores[chosen] = score_tree(model, Forest.of([rows[i] for i in chosen])).float().cpu()
    model.train(was_training)
    return scores


def _batches(rows: Sequence[list[int]], tokens: int, *, trees: bool) -> Iterator[list[int]]:
    """Rows whose tokens fit into a budget: as trees, neighbours by what they begin with; else rows of like length."""
    batch: list[int] = []
    used, before = 0, list[int]()
    for index in sorted(range(len(rows)), key=rows.__getitem__ if trees else lambda i: len(rows[i])):
        row = rows[index]
        used = used + len(row) - shared_prefix(before, row) if trees else (len(batch) + 1) * len(row)
        if batch and used > tokens:
            yield batch
            batch, used = [], len(row)
        batch.append(index)
        before = row
    if batch:
        yield batch


class Scorer:
    """A one-logit model with its tokenizer and template. Use :class:`RewardModel` or :class:`GapModel`."""

    kind: Kind

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: Card) -> None:
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise ValueError("pad equals the end token: the score would be read before the end of the answer")
        self.model = model
        self.tokenizer = tokenizer
        self.card = card
        self.template = Template(card.ask)

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: str = "float32") -> Self:
        """Load a checkpoint that a training stage wrote.

        Raises:
            InputError: no checkpoint of this kind there.
        """
        card = load_card(path, cls.kind)
        tokenizer = load_tokenizer(path)
        return cls(load_scorer(path, tokenizer, dtype).to(device()).eval(), tokenizer, card)

    def score_rows(self, rows: Sequence[list[int]]) -> Tensor:
        """Scores of prompt + completion token ids; shape (len(rows),)."""
        return score_ids(self.model, rows)

    def _score(self, conversations: Sequence[list[dict[str, str]]], responses: Sequence[str]) -> Tensor:
        prompts = encode_prompts(self.tokenizer, conversations)
        rows = [p + encode_completion(self.tokenizer, r) for p, r in zip(prompts, responses, strict=True)]
        return self.score_rows(rows)


class RewardModel(Scorer):
    """R_P: the ordinary reward r(x, y)."""

    kind = "reward"

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """r(x, y) of each pair; shape (len(prompts),)."""
        return self._score([self.template.policy_messages(prompt) for prompt in prompts], responses)

    def score(self, prompt: AnyPrompt, response: str) -> float:
        """r(x, y) of one response."""
        return float(self.scores([Prompt.of(prompt)], [response])[0])


class RewardDifference:
    """R_P(x, y) - R_P(x, y_ref) in the place of R_PIT: the obvious alternative, which the paper argues against."""

    def __init__(self, reward: RewardModel) -> None:
        self.reward = reward

    def gaps(self, items: Sequence[Improvement]) -> Tensor:
        """Zero where nothing changed, without calibration. Shape (len(items),)."""
        pairs = [(item.prompt, response) for item in items for response in (item.response, item.reference)]
        unique = list(dict.fromkeys(pairs))
        position = {pair: index for index, pair in enumerate(unique)}
        scores = self.reward.scores([prompt for prompt, _ in unique], [response for _, response in unique])
        both = scores[[position[pair] for pair in pairs]].view(-1, 2)
        return both[:, 0] - both[:, 1]

    def row_reward(self, references: Sequence[tuple[Prompt, str]]) -> Callable[[Sequence[list[int]]], Tensor]:
        """The same for rows that the improver was shown and sampled, x and y_ref being among ``references``.

        Returns:
            Scores of prompt + completion token ids, read as R_P reads them: y after x, without y_ref; shape (rows,).
        """
        tokenizer, template = self.reward.tokenizer, self.reward.template
        shown = encode_prompts(tokenizer, [template.improver_messages(x, y) for x, y in references])
        asked = encode_prompts(tokenizer, [template.policy_messages(x) for x, _ in references])
        base = self.reward.scores([x for x, _ in references], [y for _, y in references])
        known = {tuple(ids): (x_ids, score) for ids, x_ids, score in zip(shown, asked, base, strict=True)}
        lengths = sorted(set(map(len, shown)), reverse=True)

        def score(rows: Sequence[list[int]]) -> Tensor:
            cuts = [next(n for n in lengths if tuple(row[:n]) in known) for row in rows]
            found = [known[tuple(row[:cut])] for row, cut in zip(rows, cuts, strict=True)]
            own = [ids + row[cut:] for (ids, _), row, cut in zip(found, rows, cuts, strict=True)]
            return self.reward.score_rows(own) - torch.stack([score for _, score in found])

        return score


class GapModel(Scorer):
    """R_PIT: r_gap(x, y, y_ref), how much better y is than y_ref."""

    kind = "gap"

    def raw(self, items: Sequence[Improvement]) -> Tensor:
        """Raw scores r_gap(x, y, y_ref); their level is not pinned (Eq. 2). Shape (len(items),)."""
        conversations = [self.template.improver_messages(item.prompt, item.reference) for item in items]
        return self._score(conversations, [item.response for item in items])

    def gaps(self, items: Sequence[Improvement]) -> Tensor:
        """Calibrated gaps: raw score minus that of (x, y_ref, y_ref), so "no change" is zero. Shape (len(items),)."""
        equal = [Improvement(item.prompt, item.reference, item.reference) for item in items]
        unique = list(dict.fromkeys([*items, *equal]))
        position = {item: index for index, item in enumerate(unique)}
        scores = self.raw(unique)
        return calibrated_gap(scores[[position[i] for i in items]], scores[[position[i] for i in equal]])

    def gap(self, prompt: AnyPrompt, candidate: str, reference: str) -> float:
        """How much better ``candidate`` is than ``reference`` as an answer to ``prompt`` (0: no change)."""
        return float(self.gaps([Improvement(Prompt.of(prompt), reference, candidate)])[0])
