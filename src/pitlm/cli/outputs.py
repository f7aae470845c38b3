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
    _check_place(output, force)


def check_output_folder(output: Path, force: bool, what: str, pattern: str) -> None:
    """The same for a folder of files, of which ``force`` replaces no other than those of a ``pattern``.

    Raises:
        InputError: a file, a folder that is there already and not to be replaced, or nowhere to write to.
    """
    from pitlm.core.errors import InputError

    if output.exists() and not output.is_dir():
        raise InputError.at(output, found="a file", expected=f"the folder that {what} go to")
    _check_place(output, force)
    other = next((path.name for path in output.glob("*") if not path.match(pattern)), None)
    if other is not None:
        raise InputError.at(output, found=f"a folder with '{other}' in it", expected=f"only {pattern} to replace")


def _check_place(output: Path, force: bool) -> None:
    from pitlm.core.errors import InputError

    if output.exists() and not force:
        raise InputError(f"{output}: exists already; give another -o, or --force to replace it")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{output}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK):
        raise InputError(f"{output}: {above} may not be written to")
