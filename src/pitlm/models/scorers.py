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


@torch.inference_mode()
def score_groups(
    model: PreTrainedModel, groups: Sequence[Sequence[list[int]]], tokens_per_batch: int = TOKENS_PER_BATCH
) -> list[Tensor]:
    """Scores of the rows of each group, none of them empty, as if the group were scored alone; float32 on the CPU.

    Groups are read in passes of about so many tokens, in which they share nothing.
    """
    if not reads_trees(model):
        return list(score_ids(model, [row for group in groups for row in group]).split([len(g) for g in groups]))
    found: list[Tensor] = []
    batch: list[Forest] = []
    for number, group in enumerate(groups, 1):
        batch.append(Forest.of(group))
        if number == len(groups) or sum(f.input_ids_1T.shape[1] for f in batch) >= tokens_per_batch:
            scores = score_tree(model, Forest.join(batch)).float().cpu()
            found += scores.split([len(forest.rows) for forest in batch])
            batch = []
    return found


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
        equal = [_unchanged(item) for item in items]
        unique = list(dict.fromkeys([*items, *equal]))
        position = {item: index for index, item in enumerate(unique)}
        scores = self.raw(unique)
        return calibrated_gap(scores[[position[i] for i in items]], scores[[position[i] for i in equal]])

    def gaps_apart(self, groups: Sequence[Sequence[Improvement]]) -> list[list[float]]:
        """The calibrated gaps of each group as if it were scored alone.

        Rows share what they begin with inside of their group only, so that on a CPU the gaps of a group are the same to
        the last bit whatever is scored beside it. A response equal to its reference costs nothing: its gap is 0.
        """
        unique = [list(dict.fromkeys([*group, *map(_unchanged, group)])) for group in groups]
        changed = [items for items in unique if len(items) > 1]
        scores = dict(zip(map(id, changed), score_groups(self.model, [self._rows(i) for i in changed]), strict=True))
        found = []
        for group, items in zip(groups, unique, strict=True):
            raw = dict(zip(items, scores.get(id(items), torch.zeros(len(items))), strict=True))
            found.append([float(calibrated_gap(raw[item], raw[_unchanged(item)])) for item in group])
        return found

    def gap(self, prompt: AnyPrompt, candidate: str, reference: str) -> float:
        """How much better ``candidate`` is than ``reference`` as an answer to ``prompt`` (0: no change)."""
        return float(self.gaps([Improvement(Prompt.of(prompt), reference, candidate)])[0])

    def _rows(self, items: Sequence[Improvement]) -> list[list[int]]:
        """Token ids of each item; what two items are asked alike is encoded once."""
        asked = {
            (item.prompt, item.reference): self.template.improver_messages(item.prompt, item.reference)
            for item in items
        }
        prompts = dict(zip(asked, encode_prompts(self.tokenizer, list(asked.values())), strict=True))
        return [prompts[i.prompt, i.reference] + encode_completion(self.tokenizer, i.response) for i in items]


class GuardedGap:
    """R_PIT with a second opinion: the smaller of its calibrated gap and of r(x, y) - r(x, y_ref) by R_P. Ours.

    An improver that was trained to please R_PIT makes the mistakes that R_PIT does not see. R_P has not been maximised,
    so it sees some of them. Both are log odds of being preferred (Eq. 2, Bradley-Terry), so one margin suits both.
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
        """The smaller of the two gaps of each item, 0 for no change; shape (len(items),)."""
        prompts = [item.prompt for item in items]
        new = self.reward.scores(prompts, [item.response for item in items])
        old = self.reward.scores(prompts, [item.reference for item in items])
        return torch.minimum(self.gap.gaps(items), new - old)


def _unchanged(item: Improvement) -> Improvement:
    return Improvement(item.prompt, item.reference, item.reference)
