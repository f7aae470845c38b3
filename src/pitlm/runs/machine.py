"""What is to be known of this machine without asking anyone: no network, nothing heavy imported."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Set
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of memory (what a container allows of it) and of the free disk, cores that may be used, versions.

    Attributes:
        threads: what OMP_NUM_THREADS says.
        versions: of Python and of the libraries that are installed.
        missing: of each extra, the modules that are not installed.
        offline: the variables that keep the hub's libraries from asking it.
    """

    memory: int
    disk: int
    cores: int
    threads: str | None
    versions: dict[str, str]
    missing: dict[str, tuple[str, ...]]
    offline: tuple[str, ...]


def look(extras: Mapping[str, Set[str]], folder: Path) -> Machine:
    """This machine, with the extras by the modules that each brings, and the disk that ``folder`` is on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return Machine(
        min(memory, int(limit)) if limit.isdigit() else memory,
        shutil.disk_usage(folder).free,
        len(affinity(0)) if affinity else os.cpu_count() or 1,
        os.environ.get("OMP_NUM_THREADS"),
        {"python": platform.python_version(), **_versions()},
        {extra: tuple(sorted(m for m in modules if find_spec(m) is None)) for extra, modules in extras.items()},
        tuple(name for name in OFFLINE if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
