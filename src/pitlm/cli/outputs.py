"""Where verbs write to."""

from __future__ import annotations

import os
from pathlib import Path


def check_output(output: Path, force: bool, what: str) -> None:
    """Refuse, before anything long begins, what could not be written at the end.

    Raises:
        InputError: a folder, a file that is there already and not to be replaced, or nowhere to write to.
    """
    from pitlm.core.errors import InputError

    if output.is_dir():
        raise InputError.at(output, found="a folder", expected=f"the file that {what} go to")
    if output.exists() and not force:
        raise InputError(f"{output}: exists already; give another -o, or --force to replace it")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{output}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK):
        raise InputError(f"{output}: {above} may not be written to")
