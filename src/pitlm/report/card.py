"""The model card of an exported model: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pitlm import __version__
from pitlm.evaluate.statistics import Interval
from pitlm.loop.calibration import Calibration
from pitlm.models.loading import Card
from pitlm.report.html import environment
from pitlm.report.shape import Report

PAPER = "2310.00898"
_TAGS: Mapping[str, list[str]] = {"improver": ["self-improvement"], "gap": ["reward-model"], "reward": ["reward-model"]}
# What the Hub can show as figures of each kind, by the keys of the health of R_PIT.
_FIGURES: Mapping[str, tuple[str, ...]] = {
    "gap": ("held_out_pairs", "fresh_pairs"),
    "reward": ("held_out_pairs_reward",),
}


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that a model comes from.

    Attributes:
        recipe: the whole recipe as plain values, without a path of the machine that it ran on.
        base: the start model, as a reader knows it.
        hub_source, hub_base: names of the data and the start model on the hub, if they came from there.
        version: of pitlm, when the run began.
        reading: what became of the rows of the data.
        folds: pairs of each fold.
        results: what was measured; parts that were not measured are empty.
        row: the system in the table that this model is; empty for a stage on the way.
        pocket: the data is of the pocket world.
    """

    recipe: Mapping[str, Any]
    stage: str
    base: str
    hub_source: str | None
    hub_base: str | None
    version: str
    reading: str
    folds: Mapping[str, int]
    results: Report
    row: str
    pocket: bool

    @property
    def source(self) -> str:
        """The data, as a reader knows it."""
        return "the pocket world" if self.pocket else str(self.recipe["data"]["source"])


@dataclass(frozen=True, slots=True)
class Exported:
    """A model as its card shows it.

    Attributes:
        name: what commands call it: a name on the hub, or the name of its folder.
        on_hub: which of the two.
        temperature: sampling temperature; None for a model that does not write.
        dtype: of whole weights; None for an adapter.
        adapter: the base by name and the rank, for an adapter over it.
        promises: the calibrations of the gap model that goes with it.
        origin: None for a model outside a run.
    """

    card: Card
    name: str
    on_hub: bool
    temperature: float | None
    dtype: str | None
    adapter: tuple[str, int] | None
    promises: Sequence[Calibration]
    origin: Origin | None


def model_card(exported: Exported) -> str:
    """README.md: metadata for the hub, then what it is, how it is used, and what was measured."""
    origin = exported.origin
    body = (
        environment(keep_trailing_newline=True)
        .get_template("card.md.j2")
        .render(
            exported=exported,
            card=exported.card,
            origin=origin,
            settings=yaml.safe_dump(origin.recipe, sort_keys=False, allow_unicode=True) if origin else "",
            version=__version__,
            infinity=math.inf,
        )
    )
    # Read back by the hub's own class, which refuses metadata that the hub would.
    return str(ModelCard(f"---\n{_metadata(exported).to_yaml()}\n---\n{body}"))


def _metadata(exported: Exported) -> ModelCardData:
    """What the hub searches and shows."""
    kind, origin = exported.card.kind, exported.origin
    task = "text-generation" if exported.card.writes else "text-classification"
    figures = _figures(kind, origin, task) if origin else []
    data = origin.hub_source.partition(":")[0] if origin and origin.hub_source else None  # without the split
    return ModelCardData(
        base_model=origin.hub_base if origin else None,
        datasets=[data] if data else None,
        library_name="peft" if exported.adapter else "transformers",
        pipeline_tag=task,
        tags=["pitlm", "pit", f"arxiv:{PAPER}", *_TAGS.get(kind, [])],
        model_name=f"{origin.recipe['name']}-{kind}" if origin and figures else None,
        eval_results=figures or None,
    )


def _figures(kind: str, origin: Origin, task: str) -> list[EvalResult]:
    found: list[tuple[str, str, float]] = []
    for line in origin.results.systems:
        if line.system == origin.row and line.tally.judged:
            judged = f"against the original answer, judged by {line.judge}"
            found.append(("delta", f"win rate less lose rate {judged} (%)", line.delta.estimate))
            found.append(("win_rate", f"win rate {judged} (%)", line.win_rate.estimate))
    for figure in origin.results.health:
        if figure.key in _FIGURES.get(kind, ()) and isinstance(figure.value, Interval):
            found.append(("accuracy", f"{figure.name} (%)", figure.value.estimate))
    return [
        EvalResult(
            task_type=task,
            dataset_type=origin.hub_source or "preference-pairs",
            dataset_name=f"{origin.source}, held out",
            metric_type=metric,
            metric_name=name,
            metric_value=round(100 * value, 1),
        )
        for metric, name, value in found
    ]
