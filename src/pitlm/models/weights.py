"""Weights from files: each has to be there, and its numbers have to be finite."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pitlm.core.errors import InputError

SAFELY = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
"""How weights are loaded: without running code of their makers, and with a report of the weights that are missing."""


def check_weights(path: str | Path, missing: Iterable[str], weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse a checkpoint that lacks tensors, which libraries would draw at random, or that has a NaN or an infinity.

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
        # The sum of a tensor with a NaN or an infinity is not finite either, and summing needs no copy of the tensor.
        if not math.isfinite(weight.detach().sum(dtype=torch.float32)):
            raise InputError(f"{path}: found NaN or infinity in {name}, expected finite numbers; did training diverge?")
