"""The order of training rows: shuffled, with rows of similar length in one batch."""

from __future__ import annotations

import random
from collections.abc import Sequence

CHUNK = 32
"""Batches sorted by length together: enough to save most padding, few enough to stay random."""


def length_grouped(lengths: Sequence[int], *, batch_size: int, epochs: float, seed: int) -> list[int]:
    """Row indices of ``epochs`` epochs, in batches of rows of similar length. Ours.

    Each epoch is shuffled anew and cut into chunks. Rows are sorted by length within a chunk, and its batches shuffled.
    The seed fixes the whole order beforehand, so an interrupted run meets the same rows when it is resumed; a sampler
    that draws as it goes would give others.

    Returns:
        ``round(epochs * len(lengths))`` indices, at least one; every row once in each whole epoch.
    """
    total = max(1, round(epochs * len(lengths)))
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < total:
        shuffled = rng.sample(range(len(lengths)), k=len(lengths))
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), CHUNK * batch_size):
            chunk = sorted(shuffled[start : start + CHUNK * batch_size], key=lambda index: lengths[index])
            batches += [chunk[at : at + batch_size] for at in range(0, len(chunk), batch_size)]
        # A short batch in the middle would shift every later one across lengths.
        short = [batch for batch in batches if len(batch) < batch_size]
        full = [batch for batch in batches if len(batch) == batch_size]
        rng.shuffle(full)
        order += [index for batch in (*full, *short) for index in batch]
    return order[:total]
