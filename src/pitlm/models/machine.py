"""The machine that models run on: its device, its dtypes and its memory."""

import ctypes
import gc
import os
import resource
import sys
from typing import Any

import torch

# By default oneDNN keeps compiled products of 1,024 shapes: 11 GB in a training here, where 32 shapes take 3 GB.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")


def device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 natively."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def release_memory() -> None:
    """Give the memory of dropped models back, so that other processes can take it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":  # glibc keeps freed memory to itself unless it is asked
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def peak_memory() -> int:
    """Most bytes held: on a GPU since :func:`release_memory`, else by this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
