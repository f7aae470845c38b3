"""The machine at hand, and the rates of a machine: measured here, or assumed for a card from its data sheet.

This module uses no network. It imports torch only to describe the machine at hand, and only if torch is installed.
"""

import os
import platform
import shutil
from collections.abc import Mapping, Set
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

GB = 10**9

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates of one device. Rates are per second, times in seconds, memory in bytes.

    Attributes:
        train_flops: FLOP per second of forward and backward passes together.
        forward_flops: FLOP per second of passes without gradient.
        decode_flops: FLOP per second of decoding, beside the reading of the weights.
        bandwidth: bytes per second at which decoding reads weights and cache.
        head_factor: time of a FLOP of the head in training, relative to a FLOP of the layers: logits are written and
            read again for the loss and for the trainer's metrics.
        step_seconds: fixed time of an optimizer step; a forward pass takes a third of it.
        layer_seconds: further time of one layer in one pass forward and back.
        decode_seconds: further time of one layer in one step of decoding.
        tree_factor: time of a token in a tree, relative to a token in a row.
        row_seconds: time to put one conversation into tokens and batches, on the processor.
        stage_seconds: time of loading, saving and evaluating in each stage.
        kernels: bytes that a processor's compiled kernels take. If above zero, memory never falls from one stage to
            the next: the process keeps what it has freed.
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
    kernels: float = 0.0
    devices: int = 1
    price: float | None = None
    measured: bool = False


PUBLISHED = yaml.safe_load(files("pitlm.plan").joinpath("published.yaml").read_text("utf-8"))
"""Data sheets of cards, the shares of them that cards reach, sizes of models, and lengths of data."""
CARDS: Mapping[str, Mapping[str, float]] = PUBLISHED["cards"]
"""Data sheets: bytes of memory, bytes per second, and dense FLOP per second in each type."""


def assumed(name: str, dtype: str) -> Hardware:
    """The rates of one card by name: the assumed shares of its peaks, and the times that are assumed of every card."""
    card, given = CARDS[name], PUBLISHED["assumed"]
    peaks = {rate: card["bandwidth" if rate == "bandwidth" else dtype] for rate in given["shares"]}
    reached = {rate: share * peaks[rate] for rate, share in given["shares"].items()}
    return Hardware(name, card["memory"], **reached, **given["times"])


def look(extras: Mapping[str, Set[str]], folder: Path) -> dict[str, Any]:
    """Describe this machine.

    Args:
        extras: the modules of each extra.
        folder: a folder on the disk to look at.

    Returns:
        Bytes of memory (those that the container may use) and of free disk; the cores that this process may use; the
        value of OMP_NUM_THREADS; the versions of Python and of the installed libraries; the modules that are not
        installed, by extra; the variables that keep the hub's libraries from asking the hub; the accelerators.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    installed = {found.name: found.version for found in distributions()}
    return {
        "memory": memory_bytes(),
        "disk": shutil.disk_usage(folder).free,
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {"python": platform.python_version()} | {n: installed[n] for n in LIBRARIES if n in installed},
        "missing": {extra: sorted(m for m in modules if find_spec(m) is None) for extra, modules in extras.items()},
        "offline": [name for name in OFFLINE if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}],
        "accelerators": accelerators() if "torch" in installed else [],
    }


def accelerators() -> list[dict[str, Any]]:
    """Name and bytes of memory of each accelerator that torch sees."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(number) for number in range(count)]
    return [{"name": card.name, "memory": int(card.total_memory)} for card in found]


def memory_bytes() -> int:
    """Bytes of memory that the machine has, or that its container may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    return min(memory, int(limit)) if limit.isdigit() else memory
