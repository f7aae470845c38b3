"""R_P and R_PIT: models that score, and the gaps that are made of their scores."""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.equations import calibrated_gap
from pitlm.core.errors import InputError
from pitlm.core.nouns import AnyPrompt, Improvement, Prompt
from pitlm.data.template import encode_completion, encode_prompts
from pitlm.models.adapters import Bases, Checkpoint
from pitlm.models.loading import Card, window_of
from pitlm.models.trees import score_groups, score_ids


class Scorer(Checkpoint):
    """A model with one logit. Use :class:`RewardModel` or :class:`GapModel`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: Card) -> None:
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise ValueError("pad equals the end token: the score would be read before the end of the answer")
        super().__init__(model, tokenizer, card)

    def score_rows(self, rows: Sequence[list[int]]) -> Tensor:
        """Scores of prompt + completion token ids; shape (len(rows),)."""
        return score_ids(self.model, rows)

    def raw(self, items: Sequence[Improvement]) -> Tensor:
        """Raw scores of the responses; their level is not pinned (Eq. 2). Shape (len(items),).

        Raises:
            InputError: an item is longer than the model's window.
        """
        rows = self.token_ids(items)
        window, longest = window_of(self.model.config), max(map(len, rows), default=0)
        if window is not None and longest > window:
            raise InputError(
                f"found a conversation of {longest} tokens with its answer, expected at most {window}: "
                f"the {self.kind} model's window"
            )
        return self.score_rows(rows)

    def raw_apart(self, groups: Sequence[Sequence[Improvement]]) -> list[dict[Improvement, Tensor]]:
        """:meth:`raw` of each group as if the group were scored alone; NaN for items longer than the model's window."""
        flat = list(dict.fromkeys(item for group in groups for item in group))
        window = window_of(self.model.config) or sys.maxsize
        rows = {item: ids for item, ids in zip(flat, self.token_ids(flat), strict=True) if len(ids) <= window}
        read = [[item for item in group if item in rows] for group in groups]
        scores = iter(score_groups(self.model, [[rows[item] for item in group] for group in read if group]))
        missing = partial(torch.tensor, torch.nan)
        return [defaultdict(missing, zip(group, next(scores), strict=True) if group else ()) for group in read]

    def token_ids(self, items: Sequence[Improvement]) -> list[list[int]]:
        """What the model reads of each item: prompt and response. Equal prompts are encoded once."""
        asked = list(dict.fromkeys((item.prompt, item.reference) for item in items))
        encoded = encode_prompts(self.tokenizer, [self.conversation(*before) for before in asked])
        prompts = dict(zip(asked, encoded, strict=True))
        return [prompts[i.prompt, i.reference] + encode_completion(self.tokenizer, i.response) for i in items]


class RewardModel(Scorer):
    """R_P: the ordinary reward r(x, y)."""

    kind = "reward"

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """r(x, y) of each pair; shape (len(prompts),)."""
        return self.raw([Improvement(x, "", y) for x, y in zip(prompts, responses, strict=True)])

    def score(self, prompt: AnyPrompt, response: str) -> float:
        """r(x, y) of one response."""
        return float(self.scores([Prompt.of(prompt)], [response])[0])


Part = tuple[Scorer, Callable[[Improvement], tuple[Improvement, Improvement]]]
"""A model, and which two of its raw scores make a gap: the first minus the second."""


class Gaps:
    """Gaps of (x, y_ref, y): how much better y is than y_ref; 0 for no change. The smallest gap of the parts counts."""

    @property
    def parts(self) -> Sequence[Part]:
        """The models that are asked."""
        raise NotImplementedError

    def gaps(self, items: Sequence[Improvement]) -> Tensor:
        """Gaps of all items, which are scored together. Shape (len(items),)."""
        found = []
        for model, sides in self.parts:
            asked = [sides(item)[side] for side in (0, 1) for item in items]
            position = {item: index for index, item in enumerate(dict.fromkeys(asked))}
            scores = model.raw(list(position))[[position[item] for item in asked]]
            found.append(calibrated_gap(scores[: len(items)], scores[len(items) :]))
        return torch.stack(found).amin(0)

    def gaps_apart(self, groups: Sequence[Sequence[Improvement]]) -> list[list[float]]:
        """:meth:`gaps` of each group as if the group were scored alone.

        Only rows of one group share a beginning. So on a CPU the gaps of a group are the same to the last bit, whatever
        is scored beside it. A response equal to its reference costs nothing: its gap is 0.
        """
        changed = [list(dict.fromkeys(i for i in group if i.response != i.reference)) for group in groups]
        found: list[dict[Improvement, Tensor]] = [{} for _ in groups]
        for model, sides in self.parts:
            asked = [list(dict.fromkeys(sides(i)[side] for side in (0, 1) for i in items)) for items in changed]
            for least, items, raw in zip(found, changed, model.raw_apart(asked), strict=True):
                for item in items:
                    gap = calibrated_gap(*(raw[side] for side in sides(item)))
                    least[item] = torch.minimum(least.get(item, gap), gap)
        return [[float(least.get(item, 0.0)) for item in group] for group, least in zip(groups, found, strict=True)]


class RewardDifference(Gaps):
    """R_P(x, y) - R_P(x, y_ref) in the place of R_PIT: the obvious alternative, which the paper argues against."""

    def __init__(self, reward: RewardModel) -> None:
        self.reward = reward

    @property
    def parts(self) -> Sequence[Part]:
        return [(self.reward, _each_alone)]

    def row_reward(
        self, references: Sequence[tuple[Prompt, str]]
    ) -> Callable[[Sequence[list[int]], Sequence[list[dict[str, str]]]], Tensor]:
        """The same difference as the reward of RL: for samples of the improver, each beside one of the ``references``.

        Returns:
            A function of token ids of prompt + completion and of the conversations that the prompts show. R_P reads
            each row without its reference: y after x. Shape (rows,).
        """
        tokenizer, template = self.reward.tokenizer, self.reward.template
        base = dict(zip(references, self.reward.scores(*zip(*references, strict=True)), strict=True))

        def score(rows: Sequence[list[int]], conversations: Sequence[list[dict[str, str]]]) -> Tensor:
            parts = [template.parts(conversation) for conversation in conversations]
            shown = encode_prompts(tokenizer, conversations)
            asked = encode_prompts(tokenizer, [template.policy_messages(x) for x, _ in parts])
            own = [x_ids + row[len(ids) :] for x_ids, ids, row in zip(asked, shown, rows, strict=True)]
            return self.reward.score_rows(own) - torch.stack([base[part] for part in parts])

        return score


class GapModel(Scorer, Gaps):
    """R_PIT: r_gap(x, y, y_ref), how much better y is than y_ref.

    A gap is the raw score minus that of (x, y_ref, y_ref), so "no change" is zero.
    """

    kind = "gap"
    reads_reference = True
    name = "R_PIT"

    @property
    def parts(self) -> Sequence[Part]:
        return [(self, _beside_no_change)]

    def gap(self, prompt: AnyPrompt, candidate: str, reference: str) -> float:
        """How much better ``candidate`` is than ``reference`` as an answer to ``prompt`` (0: no change)."""
        return float(self.gaps([Improvement(Prompt.of(prompt), reference, candidate)])[0])


class GuardedGap(Gaps):
    """R_PIT with a second opinion: both have to find y better than y_ref. Not in the paper.

    An improver that was trained to please R_PIT makes the mistakes that R_PIT does not see. R_P has not been maximised,
    so it sees some of them. R_PIT is asked in both orders, because its score of "no change" has a noise of its own.
    Both opinions are log odds of being preferred (Eq. 2, Bradley-Terry), so one margin suits both.

    A gap is the smaller of r_gap(x, y, y_ref) - r_gap(x, y_ref, y) and r(x, y) - r(x, y_ref). It is never above 0 in
    both directions, so an answer that was replaced by a better answer cannot come back.
    """

    name = "R_PIT and R_P"

    def __init__(self, gap: GapModel, reward: RewardModel) -> None:
        self.gap = gap
        self.reward = reward
        self.folder = gap.folder

    @property
    def parts(self) -> Sequence[Part]:
        return [(self.gap, _both_orders), (self.reward, _each_alone)]


def load_gaps(gap: str | Path, reward: str | Path | None, bases: Bases | None = None) -> GapModel | GuardedGap:
    """Load a gap model. If a reward model is given too, both have to agree that an answer is better.

    Raises:
        InputError: no model of its kind there.
    """
    scorer = GapModel.from_pretrained(gap, bases=bases)
    return scorer if reward is None else GuardedGap(scorer, RewardModel.from_pretrained(reward, bases=bases))


def _beside_no_change(item: Improvement) -> tuple[Improvement, Improvement]:
    return item, Improvement(item.prompt, item.reference, item.reference)


def _both_orders(item: Improvement) -> tuple[Improvement, Improvement]:
    return item, Improvement(item.prompt, item.response, item.reference)


def _each_alone(item: Improvement) -> tuple[Improvement, Improvement]:
    return Improvement(item.prompt, "", item.response), Improvement(item.prompt, "", item.reference)
