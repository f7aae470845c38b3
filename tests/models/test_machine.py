"""What a process tells of the machine that it runs on."""

from __future__ import annotations

import subprocess
import sys


def test_the_most_memory_that_was_held_counts_after_it_was_given_back():
    script = """
from pitlm.models.machine import peak_memory, release_memory
before = peak_memory()
held = bytearray(400_000_000)
held[::4096] = b"x" * len(held[::4096])  # every page is touched
del held
release_memory()
assert 350e6 < peak_memory() - before < 600e6, (before, peak_memory())
"""
    # A shell between: a new process begins with the peak of the process that it is a copy of, here of all tests.
    command = ["sh", "-c", '"$1" -c "$2"; exit $?', "sh", sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
