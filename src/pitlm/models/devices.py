"""The accelerators that torch sees."""

import gc

import torch


def accelerators() -> list[tuple[str, int]]:
    """Name and bytes of memory of each."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(number) for number in range(count)]
    return [(card.name, int(card.total_memory)) for card in found]


def release_memory() -> None:
    """Give the memory of dropped models back, so that other processes can take it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
