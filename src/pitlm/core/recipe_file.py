"""Reads a recipe: YAML in, validated settings out, and a clear message for every mistake."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pitlm.core.errors import InputError
from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe import Recipe

Tree = TypeVar("Tree", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that comes twice; plain YAML would silently drop the first of two sections."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{name}' comes twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def named_recipe(name: str, overrides: Sequence[str], values: Mapping[str, Any]) -> Recipe:
    """The recipe of a packaged name or a file, with what the command line replaces in it.

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
    # Values are JSON, which is YAML: as plain text, a file called 2024-11-25 would be a date.
    changes |= {key: json.dumps(value) for key, value in values.items() if value is not None}
    return load_recipe(find_recipe(name), changes)


def load_recipe(path: Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Read a YAML recipe and apply ``section.key=value`` overrides.

    Raises:
        InputError: unreadable file, broken YAML, unknown key (the nearest right name is given) or impossible value.
    """
    tree = read_tree(path, "recipe")
    for key, value in (overrides or {}).items():
        _assign(tree, key, value)
    return parse_recipe(tree, str(path))


def parse_recipe(tree: dict[str, Any], origin: str) -> Recipe:
    """Validate a recipe tree; see :func:`parse_tree`."""
    return parse_tree(Recipe, tree, origin)


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
    except yaml.YAMLError as error:
        raise InputError(f"{path}: found broken YAML, expected a {what}: {error}") from error
    if not isinstance(tree, dict):
        raise InputError.at(path, found=type(tree).__name__, expected="a mapping of sections")
    return tree


def parse_tree(kind: type[Tree], tree: dict[str, Any], origin: str) -> Tree:
    """Validate a tree; ``origin`` names it in messages.

    Raises:
        InputError: unknown key or impossible value, each with its dotted name.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(kind, origin, problem) for problem in error.errors()]
        raise InputError("\n".join(problems)) from error


def _assign(tree: dict[str, Any], dotted: str, text: str) -> None:
    *sections, leaf = dotted.split(".")
    node: Any = tree
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise InputError(f"--set {dotted}: '{section}' is not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {dotted}: cannot read the value {text!r}") from error


def _explain(kind: type[BaseModel], origin: str, problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    dotted = ".".join(location)
    if problem["type"] == "extra_forbidden":
        names = _known_keys(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(names)}"
        return f"{origin}: unknown key '{dotted}'; {hint}"
    if problem["type"] == "missing":
        return f"{origin}: key '{dotted}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not dotted:
        return f"{origin}: {message}"
    found = "a section" if isinstance(problem["input"], dict) else repr(problem["input"])
    return f"{origin}: key '{dotted}': found {found}: {message}"


def _known_keys(model: type[BaseModel], sections: list[str]) -> list[str]:
    for section in (name for name in sections if not name.isdecimal()):  # a number is a place in a list
        model = next(_sections_in(model.model_fields[section].annotation))
    return list(model.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation names, such as the one in ``list[JudgeSection] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)
