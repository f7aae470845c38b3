"""What a machine does a second: measured on the machine at hand, or assumed for a card by its data sheet. Ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "bfloat16"]
GB = 10**9

TRAIN_SHARE, FORWARD_SHARE, BANDWIDTH_SHARE = 0.35, 0.45, 0.5
"""Shares of a data sheet's peaks that are assumed to be reached. Not measured here."""

LAYER_PASS, LAYER_DECODE = 0.4e-3, 0.7e-3
"""Seconds that launching one layer's kernels is assumed to take on a card: in a pass, and in a step of decoding with
transformers. Not measured here."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates of one device. Rates are per second, times in seconds, memory in bytes.

    Attributes:
        train_flops: reached in forward and backward together.
        forward_flops: reached without gradient.
        decode_flops: reached in decoding, beside the reading of the weights.
        bandwidth: at which decoding reads weights and cache.
        head_factor: a FLOP of the head in training takes this many times one of the layers: logits are written and
            read again for the loss, and for what the trainer reports.
        step_seconds: of an optimizer step, whatever its size; of a forward pass a third is taken.
        layer_seconds: of one layer in one pass forward and back, on top.
        decode_seconds: of one layer in one step of decoding, on top.
        tree_factor: a token that is read in a tree takes this many times a token of a row.
        row_seconds: of putting one conversation into tokens and batches, on the processor.
        stage_seconds: of loading, saving and evaluating, in each stage.
        devices: how many share the work.
        price: of one device for an hour.
        measured: on this machine; otherwise assumed from a data sheet.
    """

    name: str
    memory: float
    train_flops: float
    forward_flops: float
    decode_flops: float
    bandwidth: float
    head_factor: float = 1.0
    step_seconds: float = 0.0
    layer_seconds: float = 0.0
    decode_seconds: float = 0.0
    tree_factor: float = 1.0
    row_seconds: float = 1e-4
    stage_seconds: float = 1.0
    devices: int = 1
    price: float | None = None
    measured: bool = False


@dataclass(frozen=True, slots=True)
class DataSheet:
    """A data sheet: bytes of memory and a second, dense FLOP a second in each type."""

    memory: float
    bandwidth: float
    bfloat16: float
    float32: float


CARDS = {
    "l4": DataSheet(24 * GB, 300 * GB, 121e12, 30.3e12),
    "rtx4090": DataSheet(24 * GB, 1_008 * GB, 165e12, 82.6e12),
    "a100": DataSheet(80 * GB, 2_039 * GB, 312e12, 19.5e12),
    "h100": DataSheet(80 * GB, 3_350 * GB, 989e12, 67e12),
    "h200": DataSheet(141 * GB, 4_800 * GB, 989e12, 67e12),
}


def assumed(name: str, dtype: Dtype, *, devices: int = 1, price: float | None = None) -> Hardware:
    """A card by name, at the shares of its peaks that are assumed above."""
    card = CARDS[name]
    peak = card.bfloat16 if dtype == "bfloat16" else card.float32
    return Hardware(
        name,
        card.memory,
        train_flops=TRAIN_SHARE * peak,
        forward_flops=FORWARD_SHARE * peak,
        decode_flops=FORWARD_SHARE * peak,
        bandwidth=BANDWIDTH_SHARE * card.bandwidth,
        step_seconds=0.02,
        layer_seconds=3 * LAYER_PASS,
        decode_seconds=LAYER_DECODE,
        tree_factor=1.25,
        stage_seconds=30.0,
        devices=devices,
        price=price,
    )
