"""Options from a section: names, types, bounds, defaults, help texts, and the validated section that they give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field, model_validator

from pitlm.cli.options import section_options
from pitlm.core.errors import InputError
from pitlm.core.section import Section


class Kitchen(Section):
    """One field of each kind."""

    dish: Literal["soup", "bread"] = Field("soup", description="what is cooked")
    people: Annotated[int, Field(gt=0)] = Field(2, description="guests at the table")
    hours: Annotated[float, Field(gt=0, lt=24)] | None = Field(None, description="time that there is")
    salt: float = Field(0.5, ge=0, description="grams a guest")
    cook: str | None = None
    book: Path | None = Field(None, description="the cookery book")
    extras: Mapping[str, Any] = Field({}, description="further wishes")
    open_late: bool = Field(False, description="serve after ten.")

    @model_validator(mode="after")
    def _bread_takes_time(self) -> "Kitchen":
        if self.dish == "bread" and self.hours is not None and self.hours < 3:
            raise ValueError("--hours: bread takes at least 3")
        return self


class Guest(Section):
    name: str = Field(description="who comes")
    age: int | None = None


def made(*arguments: str, section: type[Section] = Kitchen, **how: Any) -> Any:
    """Return the section from a command line; usage errors and bad input raise."""
    seen: list[Any] = []

    @click.command()
    @section_options(section, into="found", **how)
    def command(found: Any) -> None:
        seen.append(found)

    result = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return seen[0]


def help_of(*chosen: str, section: type[Section] = Kitchen, **how: Any) -> str:
    command = click.command()(section_options(section, *chosen, into="found", **how)(lambda found: None))
    return " ".join(CliRunner().invoke(command, ["--help"]).output.split())


def test_a_command_without_options_gets_the_defaults_and_nothing_counts_as_given() -> None:
    found = made()
    assert found == Kitchen()
    assert found.model_fields_set == set()


def test_each_kind_of_field_is_read_and_only_what_was_given_is_set() -> None:
    words = "--dish bread --people 3 --hours 4.5 --salt 0.5 --cook Ann --book a/b.txt --open-late"
    found = made(*words.split(), "--extras", '{"wine": null}')
    wanted = {"dish": "bread", "people": 3, "hours": 4.5, "salt": 0.5, "cook": "Ann", "book": Path("a/b.txt")}
    assert found == Kitchen(**wanted, open_late=True, extras={"wine": None})
    assert found.model_fields_set == {*wanted, "open_late", "extras"}
    assert made("--salt", "0.5").model_fields_set == {"salt"}  # given explicitly, with the default value


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--dish", "stew"], "'stew' is not one of 'soup', 'bread'"),
        (["--people", "0"], "0 is not in the range x>=1"),
        (["--people", "1.5"], "'1.5' is not a valid integer"),
        (["--hours", "24"], "24.0 is not in the range 0<x<24"),
        (["--salt", "-1"], "-1.0 is not in the range x>=0"),
        (["--extras", "[1]"], "found '[1]', expected a JSON object"),
        (["--extras", "{"], "expected a JSON object"),
    ],
)
def test_a_value_that_its_option_refuses_is_a_usage_error(arguments: list[str], wanted: str) -> None:
    with pytest.raises(click.BadParameter) as stop:
        made(*arguments)
    assert wanted in stop.value.format_message()
    assert arguments[0] in stop.value.format_message()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--salt", "nan"], r"--salt: found nan: .*finite"),
        (["--hours", "2", "--dish", "bread"], r"^--hours: bread takes at least 3$"),
    ],
)
def test_what_only_the_section_refuses_is_bad_input(arguments: list[str], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        made(*arguments)


def test_fields_can_be_chosen_and_renamed() -> None:
    how = {"names": {"people": "guests"}}
    assert made("--guests", "5", **how).people == 5
    text = help_of("people", **how)
    assert "--guests INTEGER RANGE Guests at the table. [default: 2; x>=1]" in text
    assert "--dish" not in text


class Banquet(Kitchen):
    """A kitchen, one of whose fields is described anew.

    Attributes:
        people: heads at the table.
    """


def test_a_section_can_describe_a_field_anew_and_leaves_the_others_as_they_are() -> None:
    text = help_of("people", "salt", section=Banquet)
    assert "--people INTEGER RANGE Heads at the table. [default: 2; x>=1]" in text
    assert "Grams a guest." in text
    assert "Guests at the table." in help_of("people")
    assert made("--people", "5", section=Banquet).people == 5


def test_the_help_shows_descriptions_defaults_and_bounds() -> None:
    text = help_of()
    assert "--dish [soup|bread] What is cooked. [default: soup]" in text
    assert "--hours FLOAT RANGE Time that there is. [0<x<24]" in text
    assert "--book PATH The cookery book." in text
    assert "--open-late Serve after ten. --" in text


def test_the_help_says_where_a_run_gives_the_default() -> None:
    text = help_of("people", "hours", of_run=True)
    assert "Guests at the table. Default: the run's, or 2. [x>=1]" in text
    assert "Time that there is. Default: the run's. [0<x<24]" in text


def test_a_field_without_default_is_a_required_option_or_leaves_an_optional_section_out() -> None:
    assert made("--name", "Bo", "--age", "7", section=Guest) == Guest(name="Bo", age=7)
    with pytest.raises(click.MissingParameter):
        made("--age", "7", section=Guest)
    assert made("--age", "7", section=Guest, optional=True) is None
    assert made("--name", "Bo", section=Guest, optional=True) == Guest(name="Bo")
