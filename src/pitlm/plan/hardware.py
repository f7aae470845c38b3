"""Rates of a machine: measured on the machine at hand, or assumed for a card from its data sheet. Ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "bfloat16"]
GB = 10**9

TRAIN_SHARE, FORWARD_SHARE, BANDWIDTH_SHARE = 0.35, 0.45, 0.5
"""Assumed shares of a data sheet's peaks. Not measured here."""

LAYER_PASS, LAYER_DECODE = 0.4e-3, 0.7e-3
"""Assumed seconds to launch one layer's kernels on a card: in a pass, and in a step of decoding with transformers. Not
measured here."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates of one device. Rates are per second, times in seconds, memory in bytes.

    Attributes:
        train_flops: FLOP per second of forward and backward passes together.
        forward_flops: FLOP per second of passes without gradient.
        decode_flops: FLOP per second of decoding, beside the reading of the weights.
        bandwidth: bytes per second at which decoding reads weights and cache.
        head_factor: time of a FLOP of the head in training, in times of a FLOP of the layers: logits are written and
            read again for the loss and for the trainer's metrics.
        step_seconds: fixed time of an optimizer step; a forward pass takes a third of it.
        layer_seconds: further time of one layer in one pass forward and back.
        decode_seconds: further time of one layer in one step of decoding.
        tree_factor: time of a token in a tree, in times of a token in a row.
        row_seconds: time to put one conversation into tokens and batches, on the processor.
        stage_seconds: time of loading, saving and evaluating in each stage.
        devices: number of devices that share the work.
        price: price of one device for an hour.
        measured: whether the rates were measured on this machine; otherwise they are assumed from a data sheet.
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
    """A data sheet: bytes of memory, bytes per second, and dense FLOP per second in each type."""

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
    """The rates of a card by name: its peaks times the shares assumed above."""
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
