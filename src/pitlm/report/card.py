"""The model card of an exported model: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pitlm.models.calibration import Calibration
from pitlm.models.loading import Card
from pitlm.report.html import environment
from pitlm.report.shape import HEALTH_KEYS, Report

PAPER = "2310.00898"
TITLES: Mapping[str, str] = {
    "improver": "an improver M_PIT",
    "policy": "a policy M_P",
    "gap": "a gap reward model R_PIT",
    "reward": "a reward model R_P",
}
_TAGS: Mapping[str, list[str]] = {
    "improver": ["self-improvement"],
    "policy": [],
    "gap": ["reward-model"],
    "reward": ["reward-model"],
}
# What the Hub can show as figures of each kind, by the keys of the health of R_PIT.
_FIGURES: Mapping[str, tuple[str, ...]] = {
    "gap": ("held_out_pairs", "fresh_pairs"),
    "reward": ("held_out_pairs_reward",),
}


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that a model comes from, without a path of the machine that it ran on.

    Attributes:
        source, base: of the data and the weights, as a reader knows them.
        hub_source, hub_base: their names on the hub, where they came from there.
        reading: what became of the rows of the data.
        folds: pairs of each fold.
        settings: the whole recipe, as YAML.
        results: what was measured; empty parts were not.
        row: the system in the table that this model is; empty for a stage on the way.
        pocket: the data is of the pocket world.
        quantize: how the base was held under the adapters, where not as it is saved.
    """

    recipe: str
    seed: int
    stage: str
    version: str
    dtype: str
    source: str
    hub_source: str | None
    base: str
    hub_base: str | None
    reading: str
    folds: Mapping[str, int]
    settings: str
    results: Report
    row: str = ""
    pocket: bool = False
    quantize: str | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """A model as its card shows it.

    Attributes:
        name: what commands call it: a name on the hub, or the name of its folder.
        on_hub: which of the two.
        temperature: that it is sampled with; None for a model that does not write.
        dtype: of whole weights; None for an adapter.
        adapter: the base by name and the rank, for an adapter over it.
        version: of pitlm, that exported it.
        promises: the calibrations of the gap model that goes with it.
        origin: None for a model outside a run.
    """

    card: Card
    name: str
    on_hub: bool
    version: str
    temperature: float | None = None
    dtype: str | None = None
    adapter: tuple[str, int] | None = None
    promises: Sequence[Calibration] = ()
    origin: Origin | None = None

    @property
    def title(self) -> str:
        return TITLES[self.card.kind]

    @property
    def ask(self) -> str:
        """A string of Python and of JSON alike."""
        return json.dumps(self.card.ask, ensure_ascii=False)


def model_card(exported: Exported) -> str:
    """README.md: metadata for the hub, then what it is, how it is used, and what was measured."""
    template = environment(keep_trailing_newline=True).get_template("card.md.j2")
    body = template.render(exported=exported, card=exported.card, origin=exported.origin, infinity=math.inf)
    # Read back by the hub's own class, which refuses metadata that the hub would.
    return str(ModelCard(f"---\n{metadata(exported).to_yaml()}\n---\n{body}"))


def metadata(exported: Exported) -> ModelCardData:
    """What the hub searches and shows."""
    kind, origin = exported.card.kind, exported.origin
    figures = _figures(exported)
    data = origin.hub_source.partition(":")[0] if origin and origin.hub_source else None  # without the split
    return ModelCardData(
        base_model=origin.hub_base if origin else None,
        datasets=[data] if data else None,
        library_name="peft" if exported.adapter else "transformers",
        pipeline_tag="text-generation" if exported.temperature is not None else "text-classification",
        tags=["pitlm", "pit", f"arxiv:{PAPER}", *_TAGS[kind]],
        model_name=f"{origin.recipe}-{kind}" if origin and figures else None,
        eval_results=figures or None,
    )


def _figures(exported: Exported) -> list[EvalResult]:
    origin, kind = exported.origin, exported.card.kind
    if origin is None:
        return []
    found: list[tuple[str, str, float]] = []
    for line in origin.results.systems:
        if line.name == origin.row and line.delta is not None and line.win_rate is not None:
            judged = f"against the original answer, judged by {origin.results.quality_name}"
            found.append(("delta", f"win rate less lose rate {judged} (%)", line.delta.estimate))
            found.append(("win_rate", f"win rate {judged} (%)", line.win_rate.estimate))
    for key, figure in zip(HEALTH_KEYS, origin.results.health, strict=False):
        if key in _FIGURES.get(kind, ()):
            found.append(("accuracy", f"{figure.name} (%)", figure.value))
    return [
        EvalResult(
            task_type="text-generation" if exported.temperature is not None else "text-classification",
            dataset_type=origin.hub_source or "preference-pairs",
            dataset_name=f"{origin.source}, held out",
            metric_type=metric,
            metric_name=name,
            metric_value=round(100 * value, 1),
        )
        for metric, name, value in found
    ]
