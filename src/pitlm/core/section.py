"""A section: settings that are validated together, from a recipe, the command line or a caller."""

import difflib
import inspect
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from pitlm.core.errors import InputError


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


_NUMBER = BeforeValidator(_number)  # pydantic takes true for 1
PositiveInt = Annotated[int, Field(gt=0, le=10**9), _NUMBER]
PositiveFloat = Annotated[float, Field(gt=0, le=10**9), _NUMBER]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63), _NUMBER]
NonNegativeFloat = Annotated[float, Field(ge=0), _NUMBER]
Fraction = Annotated[float, Field(gt=0, lt=1), _NUMBER]
FilePath = Annotated[Path, PlainSerializer(str)]

_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
"""One entry under "Attributes:" in a docstring."""


class Section(BaseModel):
    """Settings by name; unknown names fail, and values cannot change after validation.

    The entries under "Attributes:" in the docstring of a class describe its fields. ``--help`` shows them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        # Not pydantic's `use_attribute_docstrings`, which parses the source and doubles the time of the import.
        for name, text in _ATTRIBUTE.findall(inspect.cleandoc(cls.__doc__ or "")):
            cls.model_fields[name].description = " ".join(text.split()).removesuffix(".")

    @classmethod
    def of(cls, values: Mapping[str, Any], origin: str = "", spell: Callable[[str], str] = "key '{}'".format) -> Self:
        """Validate values from a file, the command line or a caller; fields without a value have their defaults.

        Args:
            origin: the file that the values come from, for messages; empty if there is no file.
            spell: how a message names a field.

        Raises:
            InputError: an unknown name (the message gives the nearest right name), a missing or impossible value, or
                values that do not go together; one line for each.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = [(f"{origin}: " if origin else "") + _explain(cls, one, spell) for one in error.errors()]
            raise InputError("\n".join(problems)) from error

    def over(self, other: Self) -> Self:
        """The values that are set here, and the other section's values for all else."""
        return other.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


def _explain(kind: type[BaseModel], problem: Any, spell: Callable[[str], str]) -> str:
    location = [str(part) for part in problem["loc"]]  # empty if a check of the whole tree failed
    dotted = ".".join(location)
    if problem["type"] == "extra_forbidden":
        names = _known_keys(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(names)}"
        return f"unknown key '{dotted}'; {hint}"
    if problem["type"] == "missing":
        return f"{spell(dotted)} is missing"
    message: str = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]  # a list may be a thousand times as long as the file that it comes from
    found = "a section" if isinstance(value, dict) else (reprlib.repr if isinstance(value, list) else repr)(value)[:500]
    return f"{spell(dotted)}: found {found}: {message}" if dotted else message


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
