"""Options of the command line that are generated from pydantic sections, so that each setting is described once."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic import fields

from pitlm.core.recipe import Section

Command = Callable[..., Any]


def json_object(value: str) -> dict[str, Any]:
    """Read the value of an option whose field is a mapping."""
    try:
        found = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"found {value!r} ({error}), expected a JSON object") from error
    if not isinstance(found, dict):
        raise click.BadParameter(f"found {value!r}, expected a JSON object")
    return found


def section_options(
    section: type[Section],
    *chosen: str,
    into: str,
    names: Mapping[str, str] | None = None,
    helps: Mapping[str, str] | None = None,
    of_run: bool = False,
    optional: bool = False,
) -> Callable[[Command], Command]:
    """Give a command one option for each field, and hand it one validated section in their place.

    Types, bounds, defaults and help texts come from the fields. Only what the user gave is set in the section, so
    ``model_fields_set`` tells it from defaults.

    Args:
        chosen: the fields that become options; none means all.
        into: the command's argument that receives the section.
        names: options whose name differs from the field's, by field.
        helps: help texts that replace the field's description, by field.
        of_run: defaults come from a run first, and the help says so.
        optional: the section is None where the user leaves out a field that has no default.
    """
    own = {name: section.model_fields[name] for name in chosen or section.model_fields}
    spelled = {name: "--" + (names or {}).get(name, name).replace("_", "-") for name in own}
    options = [
        _option(spelled[name], name, field, (helps or {}).get(name), of_run=of_run, optional=optional)
        for name, field in own.items()
    ]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_section(**given: Any) -> Any:
            source = click.get_current_context().get_parameter_source
            values = {name: given.pop(name) for name in own}
            values = {name: value for name, value in values.items() if source(name) is not ParameterSource.DEFAULT}
            left_out = any(field.is_required() and name not in values for name, field in own.items())
            made = None if optional and left_out else section.of(values, lambda name: spelled.get(name, name))
            return command(**{into: made}, **given)

        wrapped: Command = with_section
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def _option(
    option: str, name: str, field: fields.FieldInfo, text: str | None, *, of_run: bool, optional: bool
) -> Callable[[Command], Command]:
    default = field.default if isinstance(field.default, str | int | float) else None
    text = (text or field.description or name).rstrip(".")
    text = f"{text[0].upper()}{text[1:]}."
    if of_run:
        text += " Default: the run's" + (f", or {default}." if default is not None else ".")
    kind = _click_type(field.annotation, field.metadata)
    known: dict[str, Any] = {} if default is None else {"default": default}  # click takes None for a default
    return click.option(
        option,
        name,
        type=kind,
        is_flag=kind is click.BOOL,
        required=field.is_required() and not optional,
        **known,
        show_default=default is not None and not of_run and kind is not click.BOOL,
        help=text,
    )


def _click_type(annotation: Any, found: list[Any]) -> Any:
    """Return the click type of a field, from its annotation and the constraints that were found on the way to it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _click_type(inner[0], [*found, *inner[1:]])
    if origin in (Union, UnionType):
        return _click_type(next(part for part in inner if part is not NoneType), found)
    if origin is Literal:
        return click.Choice(inner)
    if annotation in (int, float):
        return _range(annotation, [bound for item in found for bound in getattr(item, "metadata", [item])])
    if annotation is Path:
        return click.Path(path_type=Path)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return json_object
    return click.BOOL if annotation is bool else click.STRING


def _range(number: type[int] | type[float], bounds: list[Any]) -> Any:
    """Return the click type for bounds of ``annotated_types``; open bounds of an integer become closed ones."""
    kinds = ("gt", "ge", "lt", "le")
    limits: dict[str, Any] = {kind: getattr(b, kind) for b in bounds for kind in kinds if hasattr(b, kind)}
    if not limits:
        return number
    low, high = limits.get("gt", limits.get("ge")), limits.get("lt", limits.get("le"))
    if number is float:
        return click.FloatRange(low, high, min_open="gt" in limits, max_open="lt" in limits)
    return click.IntRange(limits["gt"] + 1 if "gt" in limits else low, limits["lt"] - 1 if "lt" in limits else high)
