"""Complete configurations, each a YAML file beside this module."""

from __future__ import annotations

from pathlib import Path

from pitlm.core.errors import InputError

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """The packaged recipes, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a packaged recipe, or the file that was named.

    Raises:
        InputError: neither a packaged name nor a file.
    """
    if name in recipe_names():
        return FOLDER / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{name}: found no such recipe, expected a YAML file or one of {', '.join(recipe_names())}")
    return path
