"""Token rows to scores, in passes that fit into memory, each beginning read once where the architecture allows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pitlm.models.forest import Forest, shared_prefix
from pitlm.models.trees import reads_trees, score_tree

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
