"""The nouns of judging: a comparison, the replies of a judge in each order, and the row with the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter

from pitlm.core.nouns import Prompt
from pitlm.core.section import NonNegativeFloat, NonNegativeInt

_CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)


class Verdict(StrEnum):
    """The outcome of one comparison, seen from its first response. Five different things."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"
    INCONSISTENT = "inconsistent"
    UNPARSABLE = "unparsable"

    def swap(self) -> Verdict:
        """The same outcome seen from the other response."""
        return {Verdict.WIN: Verdict.LOSS, Verdict.LOSS: Verdict.WIN}.get(self, self)

    @classmethod
    def of_orders(cls, straight: Verdict, swapped: Verdict) -> Verdict:
        """The outcome of one pair that was judged in both orders, both seen from its first response. Not in the paper.

        An unparsable half makes the whole unparsable; two halves that differ are inconsistent, a tie in one order and
        a win in the other included.
        """
        if cls.UNPARSABLE in (straight, swapped):
            return cls.UNPARSABLE
        return straight if straight is swapped else cls.INCONSISTENT


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems' responses to one prompt. A judge says whether the first response is better."""

    prompt: Prompt
    first: str
    second: str
    item: str = ""
    systems: tuple[str, str] = ("first", "second")

    def swap(self) -> Comparison:
        return replace(self, first=self.second, second=self.first, systems=self.systems[::-1])


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge's reply to one question, and what the reply cost.

    Attributes:
        swapped: the second response was shown first.
        verdict: seen from the comparison's first response, whatever the order that was shown.
        text: the raw reply.
        prompt: the question to a judge that is asked in words.
        cost: in the currency of the price table; 0 without a price table.
        failure: why there is no reply; empty if there is a reply.
    """

    swapped: bool
    verdict: Verdict
    text: str = ""
    prompt: str = ""
    input_tokens: NonNegativeInt = 0
    cached_tokens: NonNegativeInt = 0
    output_tokens: NonNegativeInt = 0
    cost: NonNegativeFloat = 0.0
    failure: str = ""

    __pydantic_config__ = _CHECKED

    def swap(self) -> Reply:
        return replace(self, swapped=not self.swapped, verdict=self.verdict.swap())


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """One judged comparison: system ``first`` against system ``second`` on item ``item``.

    Attributes:
        scores: of the first and the second response, if the judge gives scores.
        strength: how sure the judge is that the first is better, in [0, 1], if the judge gives such a number.
        replies: one for each time that the judge was asked.
        judge: who judged: a judge's name, or a rater's.
        lengths: of the first and the second response, in characters; for length-controlled rates.
        time: when the verdict was given, in seconds since 1970, if this is known; for Elo.
    """

    item: str
    first: str
    second: str
    verdict: Verdict
    scores: tuple[float, float] | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    replies: tuple[Reply, ...] = ()
    judge: str = ""
    lengths: tuple[NonNegativeInt, NonNegativeInt] | None = None
    time: float | None = None

    __pydantic_config__ = _CHECKED

    @classmethod
    def of(cls, comparison: Comparison, verdict: Verdict, *, judge: str, **more: Any) -> VerdictRow:
        """The row of a comparison; ``more`` are further fields."""
        lengths = (len(comparison.first), len(comparison.second))
        return cls(comparison.item, *comparison.systems, verdict, judge=judge, lengths=lengths, **more)

    def swap(self) -> VerdictRow:
        """The same row seen from the other system."""
        verdict, replies = self.verdict.swap(), tuple(reply.swap() for reply in self.replies)
        scores, lengths = self.scores and self.scores[::-1], self.lengths and self.lengths[::-1]
        strength = None if self.strength is None else 1.0 - self.strength
        more: dict[str, Any] = {"scores": scores, "lengths": lengths, "strength": strength, "replies": replies}
        return replace(self, first=self.second, second=self.first, verdict=verdict, **more)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; fields that hold nothing are left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, (), "")}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> VerdictRow:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValidationError: an unknown or missing field, a value of another type, or a number that is not allowed.
        """
        return _ROW.validate_python(row)


_ROW = TypeAdapter(VerdictRow)
