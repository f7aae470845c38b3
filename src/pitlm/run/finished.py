"""The recipe of a finished run. Nothing that trains is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.core.recipe import Recipe
from pitlm.core.recipe_file import load_recipe

POCKET = "pocket"
"""The data source of the pocket world."""


def stored_recipe(root: Path) -> Recipe:
    """The recipe of an earlier run.

    Raises:
        InputError: the folder holds no run.
    """
    path = root / "recipe.json"
    if not path.is_file():
        raise InputError(f"{root}: found no recipe.json, expected the folder of a run")
    return load_recipe(path)
