"""Finds packaged recipes and packaged configurations of accelerate's launcher by name."""

from pathlib import Path

from pitlm.core.errors import InputError

RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the packaged recipes, one YAML file each."""
LAUNCHES = RECIPES / "accelerate"
"""Folder of the configurations of accelerate's launcher."""


def recipe_names() -> list[str]:
    """The packaged recipes, by name."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a packaged recipe, or the file that was named.

    Raises:
        InputError: neither a packaged name nor a file.
    """
    return find_packaged(name, RECIPES, "recipe")


def find_launch(name: str) -> Path:
    """The file of a packaged configuration of accelerate's launcher, or the file that was named.

    Raises:
        InputError: neither a packaged name nor a file.
    """
    return find_packaged(name, LAUNCHES, "configuration of accelerate")


def find_packaged(name: str, folder: Path, what: str) -> Path:
    """The YAML file of this name in ``folder``, or else the file ``name``. Raises InputError: neither is there."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in names:
        return folder / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{name}: found no such {what}, expected a YAML file or one of {', '.join(names)}")
    return path
