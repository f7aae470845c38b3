"""Parts that have a name: judges, statistics, baselines, engines and readers, from pitlm and from other packages."""

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pitlm.core.errors import InputError


def part_names(group: str, builtin: Mapping[str, str]) -> list[str]:
    """The names of all parts: those of pitlm in their order, then those of other packages in alphabetical order.

    Args:
        group: the group of Python entry points in which another package names its parts, such as ``pitlm.judges``.
        builtin: the parts of pitlm by name, each as ``module:attribute``.
    """
    return [*builtin, *sorted({point.name for point in entry_points(group=group)} - set(builtin))]


def find_part(group: str, builtin: Mapping[str, str], name: str, *, where: str = "") -> Any:
    """Import the part called ``name``. A part of another package cannot replace a part of pitlm.

    Args:
        where: the option or key that names the part, for error messages; by default the group.

    Raises:
        InputError: no part has this name, or another package's part cannot be imported.
    """
    if name in builtin:
        return EntryPoint(name, builtin[name], group).load()
    for point in entry_points(group=group, name=name):
        try:
            return point.load()
        except (ImportError, AttributeError) as error:
            found = f"a part that cannot be imported ({error})"
            raise InputError.at(f"{where or group}: '{name}'", found=found, expected=point.value) from error
    names = part_names(group, builtin)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? Known: " if near else "expected one of "
    raise InputError(f"{where or group}: found '{name}', {hint}{', '.join(names)}")
