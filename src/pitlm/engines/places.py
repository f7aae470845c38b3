"""A cache in which each row has a place for its keys and values. :mod:`pitlm.models.trees` has the attention.

The paper has no such cache. A row fills the columns 0, 1, ... of its place. All places are read to the width of the
longest row, rounded up to a multiple of 16. So the keys and values of a row lie at the same columns, whatever rows run
beside it. On a CPU the numbers of the row are then the same to the last bit: vectors of 16 numbers are summed alike,
and a matrix product with a multiple of four rows does not depend on the number of rows. (We observed this with MKL and
torch 2.13; a test checks it.)

Shapes: n rows, H key-value heads, W columns, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from pitlm.models.forest import additive_mask

STEP = 16
"""Widths are multiples of this."""

ROWS = 4
"""The rows of a pass are a multiple of this."""


def rounded(length: int) -> int:
    """The width of a place for ``length`` tokens."""
    return -(-length // STEP) * STEP


class Places(Cache):
    """The cache of all rows in flight. Rows keep their place from :meth:`fill` on, until it is filled anew."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._held: list[Tensor] = []  # keys and values of each layer in turn, (places, H, capacity, D)
        self._lengths_n = torch.zeros(0, dtype=torch.long)
        self._rows_n = torch.zeros(0, dtype=torch.long)
        self._size = 0, 0  # places, columns
        self._width = 0
        self._masks: dict[Any, Tensor] = {}

    def fit(self, count: int, width: int, tokens: int) -> None:
        """Make room for ``count`` places of ``width`` columns. If the cache grows, use all of ``tokens``."""
        if count <= self._size[0] and width <= self._size[1]:
            return
        self._size = max(count, tokens // width), width
        for number, old in enumerate(self._held):
            self._held[number] = new = self._empty(old)
            kept, columns = min(len(new), len(old)), min(width, old.shape[2])
            new[:kept, :, :columns] = old[:kept, :, :columns]

    def fill(self, rows: Sequence[int], read: DynamicCache) -> None:
        """Copy the keys and values of a pass over whole prompts into these places."""
        found = [states for layer in read.layers for states in (layer.keys, layer.values)]
        self._held = self._held or [self._empty(states) for states in found]
        for held, states in zip(self._held, found, strict=True):
            held[list(rows), :, : states.shape[2]] = states

    def _empty(self, like: Tensor) -> Tensor:
        # Zeros, because attention multiplies a masked column by zero, and zero times NaN is NaN.
        return like.new_zeros(self._size[0], like.shape[1], self._size[1], like.shape[3])

    def move(self, source: int, target: int) -> None:
        """Copy one place into another."""
        for held in self._held:
            held[target] = held[source]

    def begin_step(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """Set the length of each row before its next token. Return the positions of the next tokens, (n, 1)."""
        self._lengths_n = torch.tensor(lengths, device=device)
        self._rows_n = torch.arange(len(lengths), device=device)
        self._width = rounded(max(lengths) + 1)
        self._masks.clear()
        return self._lengths_n[:, None]

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """The mask that is added to the attention scores, (n, 1, 1, W)."""
        if window not in self._masks:
            column_W = torch.arange(self._width, device=self._lengths_n.device)
            last_n1 = self._lengths_n[:, None]
            seen_nW = column_W <= last_n1
            if window is not None:
                seen_nW &= column_W > last_n1 - window
            self._masks[window] = additive_mask(seen_nW[:, None, None], dtype)
        return self._masks[window]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, (n, H, 1, D). Return all that its rows attend to, (n, H, W, D) each."""
        keys, values = self._held[2 * layer_idx : 2 * layer_idx + 2]
        keys[self._rows_n, :, self._lengths_n] = key_states[:, :, 0]
        values[self._rows_n, :, self._lengths_n] = value_states[:, :, 0]
        count = len(self._rows_n)
        return keys[:count, :, : self._width], values[:count, :, : self._width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._width - 1
