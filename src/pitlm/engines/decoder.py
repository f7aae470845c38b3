"""A decoder for a model in this process. When a completion ends, the next takes its place at once. Not in the paper.

Each row draws from its own seed, so its completion does not depend on the rows beside it.

Shapes: n rows in flight, V tokens of the vocabulary.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from dataclasses import InitVar, dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from pitlm.engines.places import ROWS, Places, rounded
from pitlm.models.trees import enable_trees

TOKENS_PER_BATCH = 16_384
REFILL = 8
"""A pass over new prompts waits until at least one place in this many is free."""
_room = attrgetter("room")


def left_padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token ids that all end in the last column, and the mask of their tokens."""
    width = max(map(len, rows))
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor([[pad] * (width - len(row)) + row for row in rows]).to(device), torch.tensor(mask).to(device)


def write_batch(
    model: PreTrainedModel, rows: Sequence[list[int]], *, pad_token_id: int, eos_token_id: int, **options: Any
) -> list[list[int]]:
    """One completion for each row of token ids by the model's own ``generate``; ends with the end token if reached."""
    ids, mask = left_padded(rows, pad_token_id, model.device)
    options |= {"pad_token_id": pad_token_id, "eos_token_id": eos_token_id}
    output = model.generate(input_ids=ids, attention_mask=mask, **options)
    completions: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return [ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids for ids in completions]


@dataclass(eq=False, slots=True)
class DecodingRow:
    """One completion that is being written.

    Attributes:
        key: names the row, and comes back with the completion.
        prompt: at least one token.
        temperature: 0 is greedy.
        room: most tokens that the row may have, prompt included, rounded up to a width of places.
        written: token ids so far, with the end token if it was reached.
    """

    key: Hashable
    prompt: list[int]
    max_new_tokens: int
    temperature: float
    seed: InitVar[int]
    random: random.Random = field(init=False)
    room: int = field(init=False)
    written: list[int] = field(default_factory=list)

    def __post_init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.room = rounded(len(self.prompt) + self.max_new_tokens)

    @property
    def length(self) -> int:
        """Tokens that the cache holds before the next step, which reads :attr:`last`."""
        return len(self.prompt) + len(self.written) - 1

    @property
    def last(self) -> int:
        return self.written[-1] if self.written else self.prompt[-1]


class Decoder:
    """Writes completions in a batch of rows whose rooms together hold at most ``tokens_per_batch`` tokens.

    Rows of like length run side by side, because a batch is as wide as its longest row. Like a lift, the decoder
    takes waiting rows in the order of their lengths, down and up again.

    Attributes:
        own: whether the decoder refills places; otherwise the model's own ``generate`` writes batch after batch.
        waiting_tokens: sum of the rooms of the waiting rows.
    """

    def __init__(self, model: PreTrainedModel, *, end: int, pad: int, tokens_per_batch: int = TOKENS_PER_BATCH) -> None:
        self.model = model
        self.end, self.pad, self.tokens = end, pad, tokens_per_batch
        self.own = enable_trees(model, "its places cannot be refilled; writing batch after batch")
        self._places = Places()
        self.rows: list[DecodingRow | None] = []
        self.waiting: list[DecodingRow] = []  # by room, then in the order of arrival
        self._staged: list[DecodingRow] = []  # taken by the lift, until enough places are free
        self.waiting_tokens = 0
        self._level, self._upward = 1 << 60, False

    def submit(self, row: DecodingRow) -> None:
        """Ask for one completion."""
        self.waiting_tokens += row.room
        insort(self.waiting, row, key=_room)

    @property
    def active(self) -> int:
        return sum(row is not None for row in self.rows)

    @torch.no_grad()  # not inference_mode, which forbids FSDP to gather weights in place
    def step(self) -> list[DecodingRow]:
        """Write one more token of each row in flight (without places: a whole batch); returns the rows that ended."""
        if not self.own:
            return self._generate()
        self._admit()
        if not self.active:
            return []
        rows = [*self.rows, *[None] * (-len(self.rows) % ROWS)]
        device = self.model.device
        positions_n1 = self._places.begin_step([row.length if row else 0 for row in rows], device)
        logits_nV = self.model(
            input_ids=torch.tensor([[row.last if row else self.pad] for row in rows], device=device),
            position_ids=positions_n1,
            past_key_values=self._places,
            attention_mask=positions_n1.new_ones(1, 1, 1, 1),  # a 4-D mask stays as it is, and is ignored
            use_cache=True,
            places=self._places,
        ).logits[:, -1]
        ended = []
        for place, token in enumerate(choose(logits_nV, rows)):
            row = rows[place]
            if row is None:
                continue
            row.written.append(token)
            if token == self.end or len(row.written) == row.max_new_tokens:
                ended.append(row)
                self.rows[place] = None
        return ended

    def _next(self) -> int:
        """Index of the next row: on the lift's level, or nearest in its direction. At its end the lift turns."""
        at = bisect_left(self.waiting, self._level + (not self._upward), key=_room)
        if self._upward and at == len(self.waiting):
            self._upward = False
        elif not self._upward and at == 0:
            self._upward = True
        return at if self._upward else at - 1

    def _admit(self) -> None:
        """Give free places to waiting rows."""
        active = [row for row in self.rows if row is not None]
        widest = max((row.room for row in (*active, *self._staged)), default=0)
        while self.waiting:
            at = self._next()
            count = len(active) + len(self._staged) + 1
            if count > 1 and count * max(widest, self.waiting[at].room) > self.tokens:
                break
            row = self.waiting.pop(at)
            self._staged.append(row)
            self._level, widest = row.room, max(widest, row.room)
        total = len(active) + len(self._staged)
        if self._staged and len(self._staged) * REFILL >= total:
            self._fill(total, widest)
        elif not self._staged and (len(self.rows) - total) * REFILL >= len(self.rows):
            self._close()

    def _fill(self, total: int, widest: int) -> None:
        """Read the prompts of the staged rows without their last token, which the next step reads."""
        staged, self._staged = self._staged, []
        self.waiting_tokens -= sum(row.room for row in staged)
        free = [place for place, row in enumerate(self.rows) if row is None]
        free += range(len(self.rows), total)
        self.rows += [None] * (total - len(self.rows))
        self._places.fit(-(-len(self.rows) // ROWS) * ROWS, widest, self.tokens)
        alike: dict[int, list[tuple[int, DecodingRow]]] = {}
        for place, row in zip(free, staged, strict=False):
            alike.setdefault(rounded(max(1, len(row.prompt) - 1)), []).append((place, row))
            self.rows[place] = row
        for width, together in alike.items():
            # Rows with one prompt, as in a group of samples, share its reading.
            distinct: dict[tuple[int, ...], int] = {}
            shared = [distinct.setdefault(tuple(row.prompt[:-1]), len(distinct)) for _, row in together]
            input_ids = torch.tensor([[*ids, *[self.pad] * (width - len(ids))] for ids in distinct])
            read = DynamicCache()
            # Padded on the right, where no token looks. The call goes through the whole model, because an adapter
            # that is one of several is switched on there; nothing passes the head. A last position that is named by
            # a number is a view, for which torch on a processor copies the head once for every row.
            self.model(
                input_ids=input_ids.to(self.model.device),
                position_ids=torch.arange(width, device=self.model.device)[None],
                past_key_values=read,
                use_cache=True,
                logits_to_keep=torch.tensor([], dtype=torch.long, device=self.model.device),
            )
            if len(distinct) < len(together):
                read.batch_select_indices(torch.tensor(shared))
            self._places.fill([place for place, _ in together], read)

    def _close(self) -> None:
        """Move the last rows into free places that no waiting row needs."""
        free = [place for place, row in enumerate(self.rows) if row is None]
        while free:
            row = self.rows.pop()
            if row is None:
                free.pop()
            else:
                self.rows[free[0]] = row
                self._places.move(len(self.rows), free.pop(0))

    def _generate(self) -> list[DecodingRow]:
        """The next waiting rows as one batch, by the model's own ``generate``."""
        rows: list[DecodingRow] = []
        widest = 0
        while self.waiting:
            at = self._next()
            widest = max(widest, self.waiting[at].room)
            if rows and (len(rows) + 1) * widest > self.tokens:
                break
            rows.append(self.waiting.pop(at))
            self._level = rows[-1].room
            self.waiting_tokens -= self._level
        if not rows:
            return []
        longest, choice = max(row.max_new_tokens for row in rows), LogitsProcessorList([_Choice(rows)])
        how: dict[str, Any] = {"max_new_tokens": longest, "do_sample": False, "logits_processor": choice}
        prompts = [row.prompt for row in rows]
        completions = write_batch(self.model, prompts, pad_token_id=self.pad, eos_token_id=self.end, **how)
        for row, ids in zip(rows, completions, strict=True):
            row.written = ids[: row.max_new_tokens]
        return rows


class _Choice(LogitsProcessor):
    """Chooses each row's token from the row's own seed, and forbids ``generate`` all others."""

    def __init__(self, rows: Sequence[DecodingRow]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen_n1 = torch.tensor(choose(scores, self.rows), device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_n1, 0.0)


def choose(logits_nV: Tensor, rows: Sequence[DecodingRow | None]) -> list[int]:
    """The next token of each row: the likeliest at temperature 0, else drawn from the full distribution.

    For each token a row draws one number from its own stream, and looks it up in its own cumulative distribution.
    """
    warmth = [row.temperature if row else 0.0 for row in rows]
    if not any(warmth):
        return logits_nV.argmax(-1).tolist()
    warmth_n1 = torch.tensor(warmth, device=logits_nV.device)[:, None]
    drawn = [row.random.random() if row and row.temperature else 0.0 for row in rows]
    drawn_n1 = torch.tensor(drawn, dtype=torch.float64, device=logits_nV.device)[:, None]
    safe_n1 = torch.where(warmth_n1 > 0, warmth_n1, 1.0)
    cumulative_nV = (logits_nV.float() / safe_n1).softmax(-1).cumsum(-1, dtype=torch.float64)
    at_n1 = torch.searchsorted(cumulative_nV, drawn_n1 * cumulative_nV[:, -1:], right=True)
    chosen_n = at_n1[:, 0].clamp_max(logits_nV.shape[1] - 1)
    if any(row and not row.temperature for row in rows):
        chosen_n = torch.where(warmth_n1[:, 0] > 0, chosen_n, logits_nV.argmax(-1))
    return chosen_n.tolist()
