"""Reads a recipe: YAML in, validated settings out, and a clear message for every mistake."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pitlm.core.errors import InputError
from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe import Recipe

# What YAML's own types raise for a date such as 2024-99-99, a number of 5,000 digits or 5,000 brackets.
_BROKEN = (yaml.YAMLError, ValueError, RecursionError, AttributeError, LookupError, TypeError)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that comes twice; plain YAML would silently drop the first of two sections."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{name}' comes twice", key.start_mark)
            seen.add(name)
        return node


def named_recipe(name: str, overrides: Sequence[str], values: Mapping[str, Any]) -> Recipe:
    """The recipe of a packaged name or a file, with the values that the command line replaces.

    Args:
        overrides: ``KEY=VALUE``, the value as YAML.
        values: further values by dotted key; those that are None replace nothing.

    Raises:
        InputError: no such recipe, an override without key or value, or as :func:`load_recipe` does.
    """
    changes = {}
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise InputError(f"--set: found {item!r}, expected KEY=VALUE, for example loop.rounds=5")
        changes[key] = value
    # Values are written as JSON, which is also YAML. As plain text, a file called 2024-11-25 would be a date.
    changes |= {key: json.dumps(value) for key, value in values.items() if value is not None}
    return load_recipe(find_recipe(name), changes)


def load_recipe(path: Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Read a YAML recipe and apply ``section.key=value`` overrides.

    Raises:
        InputError: unreadable file, broken YAML, unknown key (the nearest right name is given), impossible value, or a
            number of RL steps that would have no effect.
    """
    tree = read_tree(path, "recipe")
    for dotted, text in (overrides or {}).items():
        *sections, leaf = dotted.split(".")
        node = tree
        for section in sections:
            inner = node.get(section)
            if not isinstance(inner, dict | None):
                raise InputError(f"--set {dotted}: '{section}' is not a section")
            # A copy: YAML gives one mapping to all sections that name one anchor, and only this section is to change.
            node[section] = dict(inner or {})
            node = node[section]
        try:
            node[leaf] = yaml.safe_load(text)
        except _BROKEN as error:
            raise InputError(f"--set {dotted}: cannot read the value {text!r}") from error
    recipe = Recipe.of(tree, str(path))
    if "curriculum.rl.max_steps" in (overrides or {}) and (steps := recipe.curriculum.steps):
        raise InputError(
            f"--set curriculum.rl.max_steps: found curriculum.steps {steps} in {path}, which would win, expected --set "
            "curriculum.steps with the steps of each stage, or null"
        )
    return recipe


def read_tree(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file; ``what`` names the file in messages.

    Raises:
        InputError: unreadable file, or anything but a mapping in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the {what}: {error}") from error
    try:
        tree = yaml.load(text, Loader=_Loader)
    except _BROKEN as error:
        raise InputError(f"{path}: found broken YAML, expected a {what}: {error}") from error
    if not isinstance(tree, dict):
        raise InputError.at(path, found=type(tree).__name__, expected="a mapping of sections")
    return tree
