"""The model card of an exported checkpoint: what it is, how to ask it, what was found, how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from pitlm.report.data import Report
from pitlm.report.html import bounds, number, share

WHAT = {
    "improver": "An improver, M_PIT: it is shown a conversation and a response, and writes a better response.",
    "policy": "A policy, M_P: it answers, and an improver was trained on its answers.",
    "gap": "A gap reward model, R_PIT: it says how much better one response to a prompt is than another.",
    "reward": "An ordinary reward model, R_P: it says how good a response to a prompt is.",
}


@dataclass(frozen=True, slots=True)
class CardPage:
    """What a model card says.

    Attributes:
        name: what users load it by: a hub's name or a folder's.
        ask: the turn between reference and answer that the model was trained with.
        base: the hub name of the model that it began from.
        report: of the run that it comes from; None where that was not evaluated.
        promises: of calibrated margins, a sentence each.
        data_line: pairs read and kept.
        recipe: as YAML, without paths of the machine it ran on.
    """

    name: str
    kind: Literal["policy", "improver", "reward", "gap"]
    ask: str
    version: str
    adapter: bool = False
    base: str | None = None
    report: Report | None = None
    promises: Sequence[str] = ()
    data_line: str | None = None
    recipe: str | None = None

    @property
    def what(self) -> str:
        return WHAT[self.kind]


def render_card(card: CardPage) -> str:
    """The card as Markdown, without the metadata that a hub wants above it."""
    environment = Environment(
        loader=PackageLoader("pitlm.report", "."),
        autoescape=False,  # Markdown; nothing that a model wrote is in it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "share": share, "bounds": bounds}
    return environment.get_template("card.md.j2").render(card=card)
