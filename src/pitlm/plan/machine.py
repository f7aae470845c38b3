"""What is to be known of this machine without asking anyone: no network, nothing heavy imported."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
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
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return Machine(
        memory_bytes(),
        shutil.disk_usage(folder).free,
        len(affinity(0)) if affinity else os.cpu_count() or 1,
        os.environ.get("OMP_NUM_THREADS"),
        {"python": platform.python_version(), **_versions()},
        {extra: tuple(sorted(m for m in modules if find_spec(m) is None)) for extra, modules in extras.items()},
        tuple(name for name in OFFLINE if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}),
    )


def memory_bytes() -> int:
    """What the machine has, or what a container allows of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    return min(memory, int(limit)) if limit.isdigit() else memory


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine_lines(machine: Machine, cards: Sequence[tuple[str, int]]) -> Iterator[str]:
    """The machine and its accelerators (name, bytes) as a person reads them, and what can be run here."""
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
