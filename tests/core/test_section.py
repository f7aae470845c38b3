"""A section takes the descriptions of its fields from its docstring."""

import pytest
from pydantic import Field, create_model

from pitlm.core.errors import InputError
from pitlm.core.section import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class Oven(Section):
    """An oven.

    Attributes:
        degrees: how hot: in degrees of Celsius, and
            not of Fahrenheit.
        minutes: how long.
    """

    degrees: PositiveInt = 180
    minutes: PositiveInt
    door: bool = Field(True, description="said beside the field")


class BigOven(Oven):
    """An oven with trays.

    Attributes:
        trays: how many trays.
        minutes: how long, with all trays in it.
    """

    trays: PositiveInt = 2


def test_descriptions_come_from_the_docstring_on_one_line():
    fields = Oven.model_fields
    assert fields["degrees"].description == "how hot: in degrees of Celsius, and not of Fahrenheit"
    assert fields["minutes"].description == "how long"
    assert fields["door"].description == "said beside the field"


def test_a_subclass_keeps_descriptions_and_may_replace_them():
    fields = BigOven.model_fields
    assert fields["degrees"].description == Oven.model_fields["degrees"].description
    assert fields["minutes"].description == "how long, with all trays in it"
    assert Oven.model_fields["minutes"].description == "how long"


def test_a_description_of_no_field_is_refused():
    with pytest.raises(KeyError, match="minuets"):

        class Misspelt(Section):
            """An oven.

            Attributes:
                minuets: how long.
            """

            minutes: PositiveInt = 1


@pytest.mark.parametrize("kind", [PositiveInt, PositiveFloat, NonNegativeInt, NonNegativeFloat, Fraction])
def test_a_truth_value_is_no_number(kind):
    section = create_model("Own", __base__=Section, number=(kind, ...))
    with pytest.raises(InputError, match="key 'number': found True: expected a number"):
        section.of({"number": True})
