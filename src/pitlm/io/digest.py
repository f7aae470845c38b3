"""Short hashes of files and folders, by which a run recognizes its inputs."""

import hashlib
import os
from pathlib import Path

from pitlm.core.errors import refuse_device

WHOLE = 64 << 20
"""Files up to this size (bytes) are read whole."""
PART = 1 << 20


def digest(source: str | Path | None, *, sample: bool = False) -> str | None:
    """A hash of a file, or of the names and contents of all files in a folder: 16 hexadecimal digits.

    None if ``source`` is not a local path.

    Args:
        sample: read only the size, the beginning and the end of a file over 64 MiB. This is enough for weights, which
            training changes everywhere. It is not enough for data, where only the middle of a file may change.
    """
    path = Path(source) if source else None
    if path is None or not path.exists():
        return None
    refuse_device(path)
    found = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        found.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            if sample and size > WHOLE:
                found.update(str(size).encode() + content.read(PART))
                content.seek(-PART, os.SEEK_END)
            while block := content.read(PART):
                found.update(block)
    return found.hexdigest()[:16]
