"""Tokens into money."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, in any one currency: fresh input, input that the server had cached, output."""

    input: float
    cached: float
    output: float

    @classmethod
    def of(cls, text: str, model: str = "") -> Price:
        """Read ``in,cached,out``, or a JSON file that gives such a list, or an object of the three, for each model.

        Raises:
            InputError: neither, or a file that does not have the model.
        """
        if not Path(text).is_file():
            return cls._of_values(text.split(","), f"price '{text}'")
        try:
            table = json.loads(Path(text).read_text(encoding="utf-8"))
            given = table[model]
        except ValueError as error:
            raise InputError.at(text, found=f"broken JSON ({error})", expected="prices by model") from error
        except (KeyError, TypeError) as error:
            raise InputError.at(text, field=model, found="nothing", expected="[in, cached, out]") from error
        if isinstance(given, Mapping):
            given = [given.get(name) for name in cls.__slots__]
        return cls._of_values(given, f"{text}: field '{model}'")

    @classmethod
    def _of_values(cls, values: Sequence[Any], where: str) -> Price:
        try:
            price = cls(*(float(value) for value in values))
        except (TypeError, ValueError) as error:
            found, expected = ",".join(map(str, values)), "three numbers, for a million tokens: input, cached, output"
            raise InputError(f"{where}: found {found}, expected {expected}") from error
        if not all(0 <= value < float("inf") for value in (price.input, price.cached, price.output)):
            raise InputError(f"{where}: found {price}, expected numbers from 0")
        return price

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """Of one call; ``cached_tokens`` are among ``input_tokens``."""
        fresh = input_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * self.cached + output_tokens * self.output) / MILLION
