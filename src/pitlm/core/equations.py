"""The paper's equations, one function each, torch only.

Shapes: B triples in a batch.
r_ij is r^{i,j} = r_gap(x, y_i, y_j): how much better y_i is than y_j.
"""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

RELATIONS = ("wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw")
"""The five strict relations of Eq. 1 that Eq. 2 trains, in the order of :func:`gap_differences`."""


def reward_loss(w_B: Tensor, l_B: Tensor) -> Tensor:
    """R_P's loss: minus log sigmoid of r(x, y_w) - r(x, y_l), mean over the pairs (Bradley-Terry). In float32.

    Args:
        w_B, l_B: scores of y_w and y_l; shape (B,).

    Returns:
        A scalar.
    """
    return -logsigmoid(w_B.float() - l_B.float()).mean()


def gap_differences(wl_B: Tensor, ww_B: Tensor, ll_B: Tensor, lw_B: Tensor) -> Tensor:
    """The five differences of Eq. 2, each of which should be positive.

    Args:
        wl_B, ww_B, ll_B, lw_B: raw scores r^{w,l}, r^{w,w}, r^{l,l}, r^{l,w}; shape (B,).

    Returns:
        Shape (5, B), rows in the order of ``RELATIONS``.
    """
    return torch.stack([wl_B - ww_B, wl_B - ll_B, wl_B - lw_B, ww_B - lw_B, ll_B - lw_B])


def gap_loss(wl_B: Tensor, ww_B: Tensor, ll_B: Tensor, lw_B: Tensor, *, terms: Collection[str] = RELATIONS) -> Tensor:
    """Eq. 2: minus the sum of log sigmoid of the five differences, mean over the triples.

    The paper sums over triples; the mean only rescales the learning rate. Computed in float32.

    Args:
        terms: the differences that count, of ``RELATIONS``; the paper has all five.

    Returns:
        A scalar.
    """
    counted = [name in terms for name in RELATIONS]
    return -logsigmoid(gap_differences(wl_B, ww_B, ll_B, lw_B)[counted].float()).sum(0).mean()  # Eq. 2


def calibrated_gap(raw: Tensor, equal: Tensor) -> Tensor:
    """r_gap(x, y, y_ref) - r_gap(x, y_ref, y_ref): zero if nothing changed. Not in the paper.

    Eq. 2 leaves the level of r^{w,w} and r^{l,l} free, so a raw score has no meaningful sign.
    """
    return raw - equal
