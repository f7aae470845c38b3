"""R_P and R_PIT: models that score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.equations import calibrated_gap
from pitlm.core.nouns import Improvement, Message, Prompt
from pitlm.models.calibration import ALONE, GUARDED, Calibration, load_calibrations
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


class GapModel(Scorer):
    """R_PIT: r_gap(x, y, y_ref), how much better y is than y_ref."""

    kind = "gap"
    calibration: Calibration | None = None

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: str = "float32") -> Self:
        """Load a checkpoint that a training stage wrote, with its calibration where there is one.

        Raises:
            InputError: no gap model there, or a calibration that cannot be read.
        """
        calibration = load_calibrations(path).get(ALONE)
        model = super().from_pretrained(path, dtype)
        model.calibration = calibration
        return model

    @property
    def margin(self) -> float | None:
        """The calibrated margin: the loop's, where no other is given."""
        return self.calibration.margin if self.calibration else None

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


class GuardedGap:
    """R_PIT with a second opinion: both have to find y better than y_ref. Ours.

    An improver that was trained to please R_PIT makes the mistakes that R_PIT does not see. R_P has not been maximised,
    so it sees some of them. R_PIT is asked in both orders, because its score of "no change" has a noise of its own.
    Both opinions are log odds of being preferred (Eq. 2, Bradley-Terry), so one margin suits both.
    """

    def __init__(self, gap: GapModel, reward: RewardModel, calibration: Calibration | None = None) -> None:
        self.gap = gap
        self.reward = reward
        self.calibration = calibration

    @classmethod
    def from_pretrained(cls, gap: str | Path, reward: str | Path) -> Self:
        """Load both, and the calibration of the two together where there is one.

        Raises:
            InputError: no model of its kind there, or a calibration that cannot be read.
        """
        calibration = load_calibrations(gap).get(GUARDED)
        return cls(GapModel.from_pretrained(gap), RewardModel.from_pretrained(reward), calibration)

    @property
    def margin(self) -> float | None:
        """The margin that was calibrated for both together."""
        return self.calibration.margin if self.calibration else None

    def gaps(self, items: Sequence[Improvement]) -> Tensor:
        """The smaller of r_gap(x, y, y_ref) - r_gap(x, y_ref, y) and r(x, y) - r(x, y_ref); shape (len(items),).

        0 for no change, and never above 0 in both directions: what was left for something better cannot come back.
        """
        count, prompts = len(items), [item.prompt for item in items]
        swapped = [Improvement(item.prompt, item.response, item.reference) for item in items]
        responses = [*(item.response for item in items), *(item.reference for item in items)]
        gaps, rewards = self.gap.raw([*items, *swapped]), self.reward.scores([*prompts, *prompts], responses)
        return torch.minimum(gaps[:count] - gaps[count:], rewards[:count] - rewards[count:])
