"""A section: settings that are validated together, from a recipe, the command line or a caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from pitlm.core.errors import InputError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
FilePath = Annotated[Path, PlainSerializer(str)]


class Section(BaseModel):
    """Settings by name; unknown names fail, and values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, values: Mapping[str, Any], spell: Callable[[str], str] = str) -> Self:
        """Validate values that a caller or the command line gave; fields that are not given have their defaults.

        Args:
            spell: how a message names a field.

        Raises:
            InputError: an impossible value, a name that is no field, or values that do not go together.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError("; ".join(_problem(found, spell) for found in error.errors())) from error

    def over(self, other: Self) -> Self:
        """The values that are set here, and the other section's values for all else."""
        return other.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


def _problem(found: Any, spell: Callable[[str], str]) -> str:
    message: str = found["msg"].removeprefix("Value error, ")
    field = found["loc"][:1]  # empty where a check of the whole section failed
    return f"{spell(str(field[0]))}: found {found['input']!r}: {message}" if field else message
