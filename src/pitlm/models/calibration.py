"""What is known of a gap model's mistakes: the margins that were calibrated for it, in a file beside its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.recipe import LoopSection
from pitlm.io.atomic import write_text

FILE = "calibration.json"
ALONE, GUARDED = "R_PIT", "R_PIT and R_P"
"""Who decides: the gap model, or the gap model and R_P together (:class:`pitlm.models.scorers.GuardedGap`)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A margin and the promise that comes with it.

    Attributes:
        scorer: whose gaps the margin is for.
        margin: infinite where no margin keeps the promise: then nothing is changed.
        harm: the promised share of answers made worse, at most.
        confidence: how sure the promise is, over draws of the calibration's items.
        items: answers that it was chosen on.
        judge: who said which answer is worse.
        settings: of the loop that the promise is for.
        gaps: of the first proposals to the originals, one an item; what a later run is compared with.
        growth: length of each first proposal in units of its original's (characters).
    """

    scorer: str
    margin: float
    harm: float
    confidence: float
    items: int
    judge: str
    settings: LoopSection
    gaps: tuple[float, ...]
    growth: tuple[float, ...]

    def doubt(self, settings: LoopSection) -> str | None:
        """Why the promise is not about a loop with these settings; None where it is, budgets aside."""
        if settings.margin is not None and settings.margin < self.margin:
            needed = f"needs {self.margin:g}" if math.isfinite(self.margin) else "can be kept by no margin"
            return f"margin {settings.margin:g} is set; the promise about harm {needed}"
        for name in ("rounds", "proposals", "temperature"):
            now, then = getattr(settings, name), getattr(self.settings, name)
            if now != then:
                return (
                    f"{name} is {now:g}; the margin was calibrated with {then:g}, so its promise is about another loop"
                )
        return None


def save_calibrations(folder: Path, calibrations: Mapping[str, Calibration]) -> Path:
    """Write ``calibration.json`` beside a gap model, by scorer; an infinite margin becomes null."""
    rows = {
        name: {
            **asdict(replace(found, margin=0.0)),
            "margin": found.margin if math.isfinite(found.margin) else None,
            "settings": found.settings.model_dump(),
        }
        for name, found in calibrations.items()
    }
    write_text(folder / FILE, json.dumps(rows, indent=None) + "\n")
    return folder / FILE


def load_calibrations(folder: str | Path) -> dict[str, Calibration]:
    """The calibrations beside a gap model, by scorer; none where there is no file.

    Raises:
        InputError: the file is not what :func:`save_calibrations` writes.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    try:
        return {name: _read(row) for name, row in json.loads(path.read_text(encoding="utf-8")).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"an unreadable calibration ({type(error).__name__})"
        raise InputError.at(path, found=found, expected="what `pit calibrate` wrote; run it again") from error


def _read(row: dict[str, Any]) -> Calibration:
    fields = {
        **row,
        "margin": math.inf if row["margin"] is None else row["margin"],
        "settings": LoopSection.model_validate(row["settings"]),
        "gaps": tuple(row["gaps"]),
        "growth": tuple(row["growth"]),
    }
    return Calibration(**fields)
