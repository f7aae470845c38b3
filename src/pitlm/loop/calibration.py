"""The margins that `pit calibrate` chose for a gap model, in a file beside its weights."""

import math
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from pitlm.core.errors import loading
from pitlm.core.loop_section import LoopSection
from pitlm.core.section import Fraction, PositiveInt, Section
from pitlm.io.atomic import write_text

CALIBRATION_FILE = "calibration.json"


class Promise(Section):
    """The promise of a calibration, and the answers to choose its margin on.

    Attributes:
        harm: share of answers that the loop may make worse.
        confidence: probability with which the promise has to hold.
        rounds: rounds of the loop that the promise is for; default: the run's.
        items: most answers to choose the margin on; default: all.
        prompts: file of further prompts to choose the margin on, outside the run's folds; --items counts them too.
    """

    harm: Fraction = 0.02
    confidence: Fraction = 0.9
    rounds: PositiveInt | None = None
    items: PositiveInt | None = None
    prompts: Path | None = None


@dataclass(frozen=True)
class Calibration:
    """A margin and its promise.

    Attributes:
        scorer: name of the scorer whose gaps the margin is for.
        margin: infinite if no margin keeps the promise; the loop then changes nothing. The file has null for it.
        harm: the promise: the loop makes at most this share of answers worse.
        confidence: probability that the promise holds, over draws of the calibration's items.
        items: number of answers that the margin was chosen on.
        judge: name of the judge that said which answers are worse.
        settings: settings of the loop that the promise is for.
        gaps: gaps of the first proposals to the originals; a later run is compared with them.
        growth: length of each first proposal divided by the length of its original, both in characters.
    """

    scorer: str
    margin: Annotated[float, Field(ge=0), BeforeValidator(lambda margin: math.inf if margin is None else margin)]
    harm: Fraction
    confidence: Fraction
    items: PositiveInt
    judge: str
    settings: LoopSection
    gaps: tuple[float, ...] = field(repr=False)
    growth: tuple[float, ...] = field(repr=False)

    def doubt(self, settings: LoopSection) -> str | None:
        """Why the promise does not hold for a loop with these settings, or None. Budgets break no promise."""
        if settings.margin is not None and settings.margin < self.margin:
            needed = f"needs {self.margin:g}" if math.isfinite(self.margin) else "can be kept by no margin"
            return f"margin {settings.margin:g} is set; the promise about harm {needed}"
        for name in ("rounds", "proposals", "temperature"):
            now, then = getattr(settings, name), getattr(self.settings, name)
            if now != then:
                promised = f"the margin was calibrated with {then:g}, so its promise is about another loop"
                return f"{name} is {now:g}; {promised}"
        return None


_FILE_CONTENT = TypeAdapter(dict[str, Calibration])


def save_calibrations(folder: Path, calibrations: Mapping[str, Calibration]) -> None:
    """Write ``calibration.json`` beside a gap model: its calibrations by the name of the scorer."""
    write_text(folder / CALIBRATION_FILE, _FILE_CONTENT.dump_json(dict(calibrations)).decode() + "\n")


def load_calibrations(folder: Path) -> dict[str, Calibration]:
    """The calibrations beside a gap model by the name of the scorer; empty without a file.

    Raises:
        InputError: the file was not written by :func:`save_calibrations`.
    """
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return {}
    with loading(path, "calibration (run `pit calibrate` again)"):
        return _FILE_CONTENT.validate_json(path.read_bytes())


def margin_for(gap: Any, settings: LoopSection) -> float:
    """The margin of a loop with this scorer.

    Returns:
        The margin of the settings if they have one; else the scorer's attribute ``margin``; else the margin that
        `pit calibrate` stored in the scorer's ``folder`` under the scorer's ``name``; else 0.

    Raises:
        InputError: a calibration that cannot be read.
    """
    margin, folder = getattr(gap, "margin", None), getattr(gap, "folder", None)
    if settings.margin is not None:
        return settings.margin
    if margin is None and folder is not None and (found := load_calibrations(folder).get(gap.name)):
        margin = found.margin
    return 0.0 if margin is None else float(margin)
