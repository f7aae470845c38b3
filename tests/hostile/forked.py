"""`pit` in a process of its own that starts at once: a copy of this process, which has imported everything already."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from pitlm.cli.main import main

LIMIT = 6 * 10**9
"""Bytes that a call may ask for: more is an error in it, and not the end of the whole machine."""


@dataclass(frozen=True)
class Outcome:
    """What a call ended with; ``code`` is None if it did not end. ``memory`` is what it took beyond this process."""

    code: int | None
    output: str
    errors: str
    memory: int


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def call(arguments: list[str], folder: Path, seconds: float) -> Outcome:
    """Run ``pit`` in ``folder``, for at most so many seconds. Its output goes to files beside the folder."""
    before, files = resident(), [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    process = os.fork()
    if process == 0:
        _run(arguments, folder, files)
    until = time.monotonic() + seconds
    code: int | None = None
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > until:
            os.killpg(process, 9)
            _, _, usage = os.wait4(process, 0)
            break
        time.sleep(0.005)
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    for file in files:
        file.unlink()
    return Outcome(code, *texts, usage.ru_maxrss * 1024 - before)


def _run(arguments: list[str], folder: Path, files: list[Path]) -> None:
    code = 70
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT + _virtual(), LIMIT + _virtual()))
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", buffering=1) for number in (1, 2))
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
