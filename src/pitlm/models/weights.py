"""Weights from files: none that is missing or is no number goes unnoticed."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pitlm.core.errors import InputError


def check_weights(path: str | Path, missing: Iterable[str], weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse a checkpoint with missing tensors, for which libraries draw random numbers, and one with broken numbers.

    Args:
        missing: names of the tensors that the model needs and the checkpoint lacks.
        weights: the tensors by name.

    Raises:
        InputError: any is missing, or has a NaN or an infinity.
    """
    if lost := sorted(missing):
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(f"{path}: found no weights for {', '.join(lost[:3])}{more}, expected a whole checkpoint")
    for name, weight in weights:
        if weight.is_meta or not weight.is_floating_point():
            continue
        # A NaN or an infinity is left in the sum, which needs no copy of the tensor.
        if not math.isfinite(weight.detach().sum(dtype=torch.float32)):
            raise InputError(f"{path}: found a NaN or an infinity in {name}, expected numbers; did a training diverge?")
