"""Options of the command line that are generated from pydantic sections, so that each setting is described once."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from pitlm.core.errors import InputError, refuse_device
from pitlm.io.visible import echo

if TYPE_CHECKING:
    from pitlm.core.section import Section

Command = Callable[..., Any]


class NoDevice(click.Path):
    """A path that is no device and no pipe: to read one of those may never end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        refuse_device(path)
        return path


PATH, FILE = NoDevice(path_type=Path), NoDevice(path_type=Path, dir_okay=False)

overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a value of the recipe, e.g. loop.rounds=5."
)


def _columns(_context: click.Context, _option: click.Parameter, value: str | None) -> dict[str, str] | None:
    """Read FIELD=COLUMN,FIELD=COLUMN."""
    from pitlm.core.recipe import PairField

    parts = [part.partition("=") for part in value.split(",")] if value is not None else []
    if wrong := next((field for field, _, column in parts if field not in get_args(PairField) or not column), None):
        expected = f"FIELD=COLUMN with the fields {', '.join(get_args(PairField))}"
        raise click.BadParameter(f"found {wrong!r} in {value!r}, expected {expected}")
    return {field: column for field, _, column in parts} or None


columns_option = click.option(
    "--columns",
    metavar="FIELD=COLUMN,...",
    callback=_columns,
    help="Columns of other names, e.g. prompt=question,chosen=best,rejected=worst.",
)
json_option = click.option("--json", "json_file", type=FILE, help="Also write the figures to this file.")
_force_option = click.option("--force", is_flag=True, help="Replace output files that exist.")


def figures_options(command: Command) -> Command:
    """--json, and --force beside it."""
    return json_option(_force_option(command))


def write_figures(file: Path | None, figures: Any, *, quiet: bool = False) -> None:
    """Write figures as JSON if the user named a file, and print a line about it."""
    if file is None:
        return
    from pitlm.io.atomic import write_text

    write_text(file, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    if not quiet:
        echo(f"Figures written to {file}")


def json_object(value: str) -> dict[str, Any]:
    """Read the value of an option whose field is a mapping."""
    with suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(value), dict):
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # no server reads NaN or half a character
            return found
    raise click.BadParameter(f"found {value!r}, expected a JSON object of finite numbers and valid Unicode")


def section_options(
    section: type[Section],
    *chosen: str,
    into: str,
    names: Mapping[str, str] | None = None,
    types: Mapping[str, Any] | None = None,
    of_run: bool = False,
    optional: bool = False,
    check: Callable[[Any], Any] | None = None,
) -> Callable[[Command], Command]:
    """Give a command one option for each field, and hand it one validated section in their place.

    Types, bounds, defaults and help texts come from the fields. ``model_fields_set`` of the section has the fields that
    the user gave, and no field with a default.

    Args:
        chosen: the fields that become options; none means all.
        into: the command's argument that receives the section.
        names: options whose name differs from the field's, by field.
        types: click types that replace the field's, by field.
        of_run: defaults come from a run first, and the help says so.
        optional: the section is None if the user leaves out a field that has no default.
        check: takes the validated section and returns the section for the command.
    """
    own = {name: section.model_fields[name] for name in chosen or section.model_fields}
    schemas = section.model_json_schema()["properties"]
    keys = {name: (names or {}).get(name, name) for name in own}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_section(**given: Any) -> Any:
            source = click.get_current_context().get_parameter_source
            values = {name: given.pop(key) for name, key in keys.items()}
            values = {name: values[name] for name, key in keys.items() if source(key) is not ParameterSource.DEFAULT}
            if optional and any(field.is_required() and name not in values for name, field in own.items()):
                return command(**{into: None}, **given)
            made = section.of(values, spell=lambda name: option_name(keys.get(name, name)))
            return command(**{into: check(made) if check else made}, **given)

        wrapped: Command = with_section
        for name, field in reversed(own.items()):
            kind = (types or {}).get(name) or _click_type(schemas[name])
            required = field.is_required() and not optional
            wrapped = _option(keys[name], kind, field.description or name, field.default, of_run, required)(wrapped)
        return wrapped

    return decorate


def option_name(key: str) -> str:
    """The option that fills an argument or field."""
    return "--" + key.replace("_", "-")


def _option(key: str, kind: Any, text: str, default: Any, of_run: bool, required: bool) -> Callable[[Command], Command]:
    text = text.rstrip(".") + "."
    text = text if text.partition(" ")[0].endswith(":") else text[0].upper() + text[1:]  # "llm: ..." is a name
    known = isinstance(default, str | int | float)
    if of_run:
        text += f" Default: the run's, or {default}." if known else " Default: the run's."
        known = False
    flag = True if kind is click.BOOL else None  # False would make the value optional, so that -1 is no value
    # click takes an explicit None for a default
    given: dict[str, Any] = {"default": default, "show_default": not flag} if known else {}
    return click.option(option_name(key), key, type=kind, is_flag=flag, required=required, help=text, **given)


def _click_type(schema: Mapping[str, Any]) -> Any:
    """The click type for the JSON schema of a field; open bounds of an integer become closed ones."""
    schema = schema.get("anyOf", [schema])[0]  # the other choice is null
    if "enum" in schema:
        return click.Choice(schema["enum"])
    if schema["type"] not in ("integer", "number"):
        named = {"boolean": click.BOOL, "object": json_object, "string": click.STRING}
        return PATH if schema.get("format") == "path" else named[schema["type"]]
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    low, high = schema.get("minimum", above), schema.get("maximum", below)
    whole = schema["type"] == "integer"
    if high is not None and high >= 10**9:
        high = below = None  # a bound that nobody needs to read
    if low is None and high is None:
        return click.INT if whole else click.FLOAT
    if whole:
        return click.IntRange(low if above is None else above + 1, high if below is None else below - 1)
    return click.FloatRange(low, high, min_open=above is not None, max_open=below is not None)


def check_output(output: Path | None, force: bool, what: str, pattern: str | None = None) -> None:
    """Refuse, before anything long begins, an output that could not be written at the end, or would destroy something.

    Args:
        output: None is fine: the user wants no such output.
        what: what goes to the output, for messages.
        pattern: pattern of the files in an output folder; ``force`` replaces only a folder of such files. None: the
            output is one file.

    Raises:
        InputError: the wrong kind of output, an output that exists already and is not to be replaced, an input or
            another output of the same command, or a place that cannot be written to.
    """
    if output is None:
        return
    output.resolve()  # raises an error for a circle of links
    if output.exists() and output.is_dir() != (pattern is not None):
        found, expected = ("a folder", "file") if output.is_dir() else ("a file", "folder")
        raise InputError.at(output, found=found, expected=f"the {expected} that {what} go to")
    if output.exists() and not force:
        raise InputError(f"{output}: exists already; name another output, or give --force to replace it")
    named = getattr(click.get_current_context(silent=True), "params", {}).values()
    paths = [path for value in named for path in (value if isinstance(value, tuple) else [value])]
    beside = ("", "-wal", "-shm", "-journal")  # SQLite's files beside a database
    taken = [os.path.realpath(f"{path}{end}") for path in paths if isinstance(path, str | Path) for end in beside]
    if taken.count(os.path.realpath(output)) > 1:
        raise InputError(f"{output}: found the same file twice in one command, expected {what} to go to another file")
    if output.exists() and any(isinstance(path, Path) and path.resolve() in output.resolve().parents for path in paths):
        raise InputError(f"{output}: found a file of the input, expected {what} to go to another file")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{output}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK):
        raise InputError(f"{output}: {above} may not be written to")
    if pattern is not None:
        other = next((path.name for path in output.glob("*") if not path.match(pattern)), None)
        if other is not None:
            raise InputError.at(output, found=f"a folder with '{other}' in it", expected=f"only {pattern} to replace")
