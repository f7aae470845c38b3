"""Texts for people that are made from templates of the package."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(
    package: str, name: str, filters: Mapping[str, Callable[..., Any]] | None = None, **options: Any
) -> Template:
    """A template of a package. A value that is missing is an error; further options are jinja's."""
    made = Environment(loader=PackageLoader(package, "."), undefined=StrictUndefined, trim_blocks=True, **options)
    made.filters |= filters or {}
    return made.get_template(name)
