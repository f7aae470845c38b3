"""R_P and R_PIT: models that score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pitlm.core.equations import calibrated_gap
from pitlm.core.nouns import Improvement, Message, Prompt
from pitlm.data.template import Template, encode_completion, encode_prompts
from pitlm.models.adapters import Bases
from pitlm.models.calibration import ALONE, GUARDED, Calibration, load_calibrations
from pitlm.models.loading import Card, Kind, check_window, device, load_card, load_scorer, load_tokenizer
from pitlm.models.scoring import score_groups, score_ids

AnyPrompt = str | Prompt | Sequence[dict[str, Any] | Message]


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
    def from_pretrained(cls, path: str | Path, dtype: str = "float32", *, bases: Bases | None = None) -> Self:
        """Load a checkpoint that a training stage wrote.

        Args:
            bases: opens it beside others, over the base that they share.

        Raises:
            InputError: no checkpoint of this kind there.
        """
        card = load_card(path, cls.kind)
        tokenizer = load_tokenizer(path)
        load = load_scorer if bases is None else bases.scorer
        return cls(load(path, tokenizer, dtype).to(device()).eval(), tokenizer, card)

    def score_rows(self, rows: Sequence[list[int]]) -> Tensor:
        """Scores of prompt + completion token ids; shape (len(rows),)."""
        return score_ids(self.model, rows)

    def _score(self, conversations: Sequence[list[dict[str, str]]], responses: Sequence[str]) -> Tensor:
        prompts = encode_prompts(self.tokenizer, conversations)
        rows = [p + encode_completion(self.tokenizer, r) for p, r in zip(prompts, responses, strict=True)]
        check_window(self.model, rows, f"the {self.kind} model's window")
        return self.score_rows(rows)

    def _apart(
        self, groups: Sequence[Sequence[Improvement]], ask: Callable[[Improvement], list[dict[str, str]]]
    ) -> list[dict[Improvement, Tensor]]:
        """Scores of the responses of each group; groups may be empty, and conversations are encoded once."""
        flat = list(dict.fromkeys(item for group in groups for item in group))
        asked = {(item.prompt, item.reference): ask(item) for item in flat}
        prompts = dict(zip(asked, encode_prompts(self.tokenizer, list(asked.values())), strict=True))
        rows = {i: prompts[i.prompt, i.reference] + encode_completion(self.tokenizer, i.response) for i in flat}
        some = [group for group in groups if group]
        scores = iter(score_groups(self.model, [[rows[item] for item in group] for group in some]))
        return [dict(zip(group, next(scores), strict=True)) if group else {} for group in groups]


class RewardModel(Scorer):
    """R_P: the ordinary reward r(x, y)."""

    kind = "reward"

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """r(x, y) of each pair; shape (len(prompts),)."""
        return self._score([self.template.policy_messages(prompt) for prompt in prompts], responses)

    def scores_apart(self, groups: Sequence[Sequence[Improvement]]) -> list[dict[Improvement, Tensor]]:
        """r(x, y) of the responses of each group as if it were scored alone; see :meth:`GapModel.gaps_apart`."""
        return self._apart(groups, lambda i: self.template.policy_messages(i.prompt))

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
    calibration: Calibration | None = None

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: str = "float32", *, bases: Bases | None = None) -> Self:
        """Load a checkpoint that a training stage wrote, with its calibration where there is one.

        Raises:
            InputError: no gap model there, or a calibration that cannot be read.
        """
        calibration = load_calibrations(path).get(ALONE)
        model = super().from_pretrained(path, dtype, bases=bases)
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
        """:meth:`gaps` of each group as if it were scored alone.

        Rows share what they begin with inside of their group only, so that on a CPU the gaps of a group are the same to
        the last bit whatever is scored beside it. A response equal to its reference costs nothing: its gap is 0.
        """
        asked = [list(dict.fromkeys([*items, *map(_unchanged, items)])) for items in _changed(groups)]
        return [
            [float(calibrated_gap(raw[i], raw[_unchanged(i)])) if i in raw else 0.0 for i in group]
            for group, raw in zip(groups, self.raw_apart(asked), strict=True)
        ]

    def raw_apart(self, groups: Sequence[Sequence[Improvement]]) -> list[dict[Improvement, Tensor]]:
        """:meth:`raw` of each group as if it were scored alone."""
        return self._apart(groups, lambda i: self.template.improver_messages(i.prompt, i.reference))

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
    def from_pretrained(
        cls, gap: str | Path, reward: str | Path, dtype: str = "float32", *, bases: Bases | None = None
    ) -> Self:
        """Load both, and the calibration of the two together where there is one.

        Raises:
            InputError: no model of its kind there, or a calibration that cannot be read.
        """
        calibration = load_calibrations(gap).get(GUARDED)
        both = (
            GapModel.from_pretrained(gap, dtype, bases=bases),
            RewardModel.from_pretrained(reward, dtype, bases=bases),
        )
        return cls(*both, calibration)

    @property
    def margin(self) -> float | None:
        """The margin that was calibrated for both together."""
        return self.calibration.margin if self.calibration else None

    def gaps(self, items: Sequence[Improvement]) -> Tensor:
        """The smaller of r_gap(x, y, y_ref) - r_gap(x, y_ref, y) and r(x, y) - r(x, y_ref); shape (len(items),).

        0 for no change, and never above 0 in both directions: what was left for something better cannot come back.
        """
        count = len(items)
        gaps = self.gap.raw([*items, *map(_swapped, items)])
        return torch.minimum(gaps[:count] - gaps[count:], RewardDifference(self.reward).gaps(items))

    def gaps_apart(self, groups: Sequence[Sequence[Improvement]]) -> list[list[float]]:
        """:meth:`gaps` of each group as if it were scored alone; see :meth:`GapModel.gaps_apart`."""
        changed = _changed(groups)
        gaps = self.gap.raw_apart([[*items, *map(_swapped, items)] for items in changed])
        asked = [list(dict.fromkeys([*items, *map(_unchanged, items)])) for items in changed]
        found = []
        for group, gap, reward in zip(groups, gaps, self.reward.scores_apart(asked), strict=True):
            smaller = {
                i: min(float(gap[i] - gap[_swapped(i)]), float(reward[i] - reward[_unchanged(i)]))
                for i in group
                if i in gap
            }
            found.append([smaller.get(i, 0.0) for i in group])
        return found


def _changed(groups: Sequence[Sequence[Improvement]]) -> list[list[Improvement]]:
    """What is not a mere copy of its reference, once each."""
    return [list(dict.fromkeys(i for i in group if i.response != i.reference)) for group in groups]


def _unchanged(item: Improvement) -> Improvement:
    return Improvement(item.prompt, item.reference, item.reference)


def _swapped(item: Improvement) -> Improvement:
    return Improvement(item.prompt, item.response, item.reference)
