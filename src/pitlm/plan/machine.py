"""This machine: memory, cores, versions, what is missing. No network is used, and nothing heavy is imported."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has.

    Attributes:
        memory: bytes that the machine has, or that its container may use.
        disk: free bytes.
        cores: cores that this process may use.
        threads: value of OMP_NUM_THREADS.
        versions: versions of Python and of the installed libraries.
        missing: modules that are not installed, by extra.
        offline: environment variables that keep the hub's libraries from asking the hub.
    """

    memory: int
    disk: int
    cores: int
    threads: str | None
    versions: dict[str, str]
    missing: dict[str, tuple[str, ...]]
    offline: tuple[str, ...]


def look(extras: Mapping[str, Set[str]], folder: Path) -> Machine:
    """Describe this machine; ``extras`` has the modules of each extra, and ``folder`` is on the disk to look at."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    installed = {found.name: found.version for found in distributions()}
    return Machine(
        memory_bytes(),
        shutil.disk_usage(folder).free,
        len(affinity(0)) if affinity else os.cpu_count() or 1,
        os.environ.get("OMP_NUM_THREADS"),
        {"python": platform.python_version(), **{name: installed[name] for name in LIBRARIES if name in installed}},
        {extra: tuple(sorted(m for m in modules if find_spec(m) is None)) for extra, modules in extras.items()},
        tuple(name for name in OFFLINE if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}),
    )


def memory_bytes() -> int:
    """Bytes of memory that the machine has, or that its container may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    return min(memory, int(limit)) if limit.isdigit() else memory


def machine_lines(machine: Machine, cards: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Lines for a person: the machine, its accelerators (name, bytes), and what can be run here."""
    threads = f", OMP_NUM_THREADS={machine.threads}" if machine.threads else ""
    yield f"memory      {machine.memory / 1e9:.0f} GB; disk {machine.disk / 1e9:.0f} GB free here"
    yield f"processor   {machine.cores} cores{threads}"
    yield f"GPU         {'; '.join(f'{name}, {memory / 1e9:.0f} GB' for name, memory in cards) or 'none'}"
    yield f"versions    {', '.join(f'{name} {number}' for name, number in machine.versions.items())}"
    for extra, missing in machine.missing.items():
        state = f"lacks {', '.join(missing)}: pip install 'pitlm[{extra}]'" if missing else "installed"
        yield f"{extra:10}  {state}"
    offline = f"offline ({', '.join(machine.offline)})" if machine.offline else "asked for what is not in its cache"
    yield f"hub         {offline}"
    if machine.missing["train"] or machine.missing["evaluate"]:
        able = "judging, rating and serving remote models; not pit run"
    elif cards:
        able = "every recipe that fits: pit doctor RECIPE"
    else:
        able = "quickstart and hh-small, in minutes; recipes with models of 0.5B and more want a GPU"
    yield f"can run     {able}"
