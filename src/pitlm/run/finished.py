"""What a finished run has where, for those who use it: without what trains, which takes seconds to import."""

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


def policy_stage(recipe: Recipe) -> str:
    """The name of the stage that holds the policy whose answers are improved."""
    return "policy-rl" if recipe.policy_rl else "policy-sft"


def improver_stage(recipe: Recipe) -> str:
    """The name of the stage that holds the finished improver."""
    return recipe.curriculum.stage_names[-1]
