"""Rows that begin alike, packed into one sequence as trees that hold each shared beginning once. Not in the paper.

The four rows of Eq. 2 share x, and two by two a reference; the candidates of one reference share x and y_ref. A tree
has its first row whole, and of each further row only the new tokens, without padding. The attention of the tokens (each
to its ancestors and itself) is planned here in blocks; each block is one attention call.

Shapes: R rows, T tokens of a forest; n pieces of a block, with Q queries and K keys each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Costs of the parts of a forward pass, in attended (query, key) pairs, measured on two cores at widths 96 to 512.
PAIRS_PER_KEY, PAIRS_PER_CALL, PAIRS_PER_TOKEN = 50, 20_000, 1_000
SLACK = 1.25
"""Padding may multiply the pairs of one attention call by this factor."""

TOKENS_PER_PASS = 32
"""Fewest tokens of joined forests."""

KEYS_PER_CALL = 16_384
"""Most keys that one attention call copies; keys are copied for each piece."""

Ints = NDArray[np.int64]


class Piece(NamedTuple):
    """Consecutive new tokens; ``path`` holds their ancestors and themselves, which is what they attend to."""

    queries: int
    path: Ints


class Block(NamedTuple):
    """Pieces that attend in one call. Without ``allowed_nQK`` the queries are the keys, and attention is causal."""

    queries_nQ: Tensor
    keys_nK: Tensor
    allowed_nQK: Tensor | None


@dataclass(frozen=True)
class Forest:
    """Rows packed for :func:`score_tree`; make one with :meth:`of`.

    Attributes:
        rows: the token ids that were packed.
        paths: for each row, the places of its tokens among the T tokens.
        last_R: place of each row's last token among the T tokens.
        order_T: place of each token among the outputs of all blocks.
    """

    rows: Sequence[list[int]]
    input_ids_1T: Tensor
    position_ids_1T: Tensor
    paths: Sequence[Ints]
    last_R: Tensor
    order_T: Tensor
    blocks: tuple[Block, ...]
    masks: dict[Any, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[list[int]]) -> Forest:
        """Pack at least one row of at least one token each, in any order; equal rows are read once."""
        tokens: list[int] = []
        paths: list[Ints] = [np.zeros(0, np.int64)] * len(rows)
        end = np.zeros(sum(map(len, rows)), np.int64)
        roots: list[Piece] = []
        branches: list[Piece] = []
        positions: list[int] = []
        previous: list[int] = []
        path, total = np.zeros(0, np.int64), 0
        for index in sorted(range(len(rows)), key=rows.__getitem__):
            row = rows[index]
            shared = shared_prefix(previous, row)
            if not worth_sharing(shared, len(row)):
                shared = 0
            new = len(row) - shared
            if new:
                end[path[shared:]] = total
                path = np.concatenate([path[:shared], np.arange(total, total + new)])
                tokens += row[shared:]
                positions += range(shared, len(row))
                total, previous = total + new, row
                if not shared:
                    roots.append(Piece(new, path))
                else:
                    _grow(branches, Piece(new, path))
            paths[index] = path
        end[path] = total
        made = [_root_block(p) for p in _batched(roots)] + [_branch_block(p, end) for p in _batched(branches)]
        order = np.empty(total, np.int64)
        outputs = np.concatenate([owners for _, owners in made])
        order[outputs[outputs >= 0]] = np.flatnonzero(outputs >= 0)
        ids_1T, depths_1T = (torch.from_numpy(np.array(numbers))[None] for numbers in (tokens, positions))
        last_R, blocks = torch.tensor([path[-1] for path in paths]), tuple(block for block, _ in made)
        return cls(rows, ids_1T, depths_1T, paths, last_R, torch.from_numpy(order), blocks)

    @classmethod
    def join(cls, forests: Sequence[Forest]) -> Forest:
        """Pack forests side by side: each row keeps the numbers of its own forest and attends to no other.

        Only blocks of one shape attend in one call, and nothing is padded for the sake of another forest. On a CPU the
        numbers are then the same to the last bit, as long as the number of tokens is a multiple of four and not small:
        other kernels multiply a remainder. So the end is filled up with tokens that no row attends to.
        """
        starts = np.cumsum([0, *(forest.input_ids_1T.shape[1] for forest in forests)])
        filling = torch.zeros(max(TOKENS_PER_PASS, -(-starts[-1] // 16) * 16) - starts[-1], dtype=torch.long)
        alike: dict[tuple[int, int, bool], list[tuple[int, int, Block]]] = {}
        for number, forest in enumerate(forests):
            for at, b in enumerate(forest.blocks):
                shape = (b.queries_nQ.shape[1], b.keys_nK.shape[1], b.allowed_nQK is None)
                alike.setdefault(shape, []).append((number, at, b))
        blocks, begins, total = [], dict[tuple[int, int], int](), 0
        for together in alike.values():
            for number, at, b in together:
                begins[number, at] = total
                total += b.queries_nQ.numel()
            masks = [b.allowed_nQK for _, _, b in together if b.allowed_nQK is not None]
            queries = torch.cat([b.queries_nQ + starts[number] for number, _, b in together])
            keys = torch.cat([b.keys_nK + starts[number] for number, _, b in together])
            blocks.append(Block(queries, keys, torch.cat(masks) if masks else None))
        orders = []
        for number, forest in enumerate(forests):
            outputs = [torch.arange(b.queries_nQ.numel()) + begins[number, at] for at, b in enumerate(forest.blocks)]
            orders.append(torch.cat(outputs)[forest.order_T])
        rows = [row for forest in forests for row in forest.rows]
        ids_1T = torch.cat([*(forest.input_ids_1T for forest in forests), filling[None]], 1)
        depths_1T = torch.cat([*(forest.position_ids_1T for forest in forests), filling[None]], 1)
        paths = [path + start for forest, start in zip(forests, starts, strict=False) for path in forest.paths]
        last_R = torch.cat([forest.last_R + start for forest, start in zip(forests, starts, strict=False)])
        return cls(rows, ids_1T, depths_1T, paths, last_R, torch.cat([*orders, filling]), tuple(blocks))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Forest:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        tensors = ("input_ids_1T", "position_ids_1T", "last_R", "order_T")
        moved: dict[str, Any] = {name: move(getattr(self, name)) for name in tensors}
        blocks = tuple(Block._make(part if part is None else move(part) for part in block) for block in self.blocks)
        return replace(self, **moved, blocks=blocks, masks={})

    def mask(self, number: int, dtype: torch.dtype, window: int | None) -> Tensor | None:
        """The mask that is added to a block's attention scores, (n or 1, 1, Q, K); None for plain causal attention."""
        depth_T = self.position_ids_1T[0]
        if window is not None and window > max(map(len, self.rows)):
            window = None
        if (number, dtype, window) not in self.masks:
            block = self.blocks[number]
            allowed = block.allowed_nQK
            if window is not None:
                near = depth_T[block.queries_nQ][:, :, None] - depth_T[block.keys_nK][:, None, :] < window
                width = block.keys_nK.shape[1]
                allowed = near & (near.new_ones(width, width).tril() if allowed is None else allowed)
            self.masks[number, dtype, window] = None if allowed is None else additive_mask(allowed, dtype)[:, None]
        return self.masks[number, dtype, window]


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where attention is allowed, else the lowest number of the dtype."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def shared_prefix(a: list[int], b: list[int]) -> int:
    """The number of tokens with which two rows begin alike, by bisection, because Python compares slices fast."""
    low, high = 0, min(len(a), len(b)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def worth_sharing(shared: int, length: int) -> bool:
    """Whether a branch costs less than a root: it reads ``shared`` tokens less, but needs a mask."""
    branch, root = (length - shared + PAIRS_PER_KEY) * length, length * length / 2
    return branch - root < shared * PAIRS_PER_TOKEN


def _cost(piece: Piece) -> int:
    return (piece.queries + PAIRS_PER_KEY) * len(piece.path)


def _grow(branches: list[Piece], new: Piece) -> None:
    """Add a branch. Join it with the branch before it in its tree if copying their ancestors twice would cost more.

    Branches come depth first, so the ancestors of a later one are among the keys of those joined before it.
    """
    if branches and branches[-1].path[0] == new.path[0]:
        last = branches[-1]
        joint = Piece(last.queries + new.queries, np.concatenate([last.path, new.path[-new.queries :]]))
        if _cost(joint) <= _cost(last) + _cost(new):
            branches[-1] = joint
            return
    branches.append(new)


def _batched(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Groups of pieces of similar size, while the padding costs less than another call."""
    batch: list[Piece] = []
    needed = queries = keys = 0
    for piece in sorted(pieces, key=lambda piece: (piece.queries, len(piece.path))):
        pairs = piece.queries * len(piece.path)
        queries, keys = max(queries, piece.queries), max(keys, len(piece.path))
        count = len(batch) + 1
        padded_too_much = count * queries * keys > SLACK * (needed + pairs) + PAIRS_PER_CALL
        if batch and (padded_too_much or count * keys > KEYS_PER_CALL):
            yield batch
            batch, needed, queries, keys = [], 0, piece.queries, len(piece.path)
        batch.append(piece)
        needed += pairs
    if batch:
        yield batch


def _root_block(pieces: list[Piece]) -> tuple[Block, Ints]:
    """Whole rows, padded on the right, where a causal query does not look. Also the token of each output, or -1."""
    lengths = np.array([len(piece.path) for piece in pieces])
    width = lengths.max()
    keys = np.zeros((len(pieces), width), np.int64)
    for row, piece in zip(keys, pieces, strict=True):
        row[: len(piece.path)] = piece.path
    index = torch.from_numpy(keys)
    return Block(index, index, None), np.where(np.arange(width) < lengths[:, None], keys, -1).ravel()


def _branch_block(pieces: list[Piece], end: Ints) -> tuple[Block, Ints]:
    """The ends of paths, padded on the left, and the token of each output, or -1.

    In depth-first order a token's subtree is a range, so k is an ancestor of q if k <= q < end of k.
    """
    lengths, counts = np.array([[len(piece.path), piece.queries] for piece in pieces]).T
    width, height = lengths.max(), counts.max()
    keys = np.zeros((len(pieces), width), np.int64)
    for row, piece in zip(keys, pieces, strict=True):
        row[width - len(piece.path) :] = piece.path
    queries = np.ascontiguousarray(keys[:, width - height :])
    real = np.arange(height) >= height - counts[:, None]
    until = np.where(np.arange(width) >= width - lengths[:, None], end[keys], 0)
    k, q, u = torch.from_numpy(keys), torch.from_numpy(queries), torch.from_numpy(until)
    allowed = (k[:, None, :] <= q[:, :, None]) & (q[:, :, None] < u[:, None, :])
    return Block(q, k, allowed), np.where(real, queries, -1).ravel()
