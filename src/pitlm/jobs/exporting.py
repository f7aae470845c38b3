"""A trained model for the world outside: one folder that any engine loads, with a card, here or on a hub."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from huggingface_hub import HfApi, ModelCardData, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from pitlm import __version__
from pitlm.core.config import Recipe
from pitlm.core.errors import InputError
from pitlm.models.calibration import FILE as CALIBRATION
from pitlm.models.calibration import Calibration, load_calibrations
from pitlm.models.export import Dtype, adapter_base, export_adapter, export_model
from pitlm.models.loading import Card, Kind, first_line, quiet
from pitlm.pipeline.context import POCKET, Context
from pitlm.pipeline.finished import improver_stage, policy_stage, rl_stages, stored_recipe
from pitlm.pipeline.reporting import data_line, read_report
from pitlm.report.card import CardPage, render_card
from pitlm.runs.atomic import atomic_folder, write_text
from pitlm.runs.stage import stage_record, stage_result

PIPELINES = {"improver": "text-generation", "policy": "text-generation"}
"""What a hub calls the task of each kind; of the others text classification."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model's folder, its card, and the run that it comes from, where that is known."""

    model: Path
    card: Card
    run: Path | None


def find_source(path: Path, kind: Kind | None) -> Source:
    """The model meant by the folder of a run (of which ``kind`` is chosen), of a stage, or of a model.

    Raises:
        InputError: none of these there, or a run without that model.
    """
    if (path / "recipe.json").is_file():
        recipe = stored_recipe(path)
        stages = {"improver": improver_stage(recipe), "policy": policy_stage(recipe)}
        wanted = kind or "improver"
        model = path / stages.get(wanted, wanted) / "model"
        card = Card.load(model)
        if card is None:
            raise InputError(f"{path}: found no trained {wanted}, expected {model}: pit run goes on where it stopped")
        return Source(model, card, path)
    if kind is not None:
        raise InputError(f"{path}: found no run, expected one: --model chooses among a run's models")
    for model in (path, path / "model"):
        if (card := Card.load(model)) is not None:
            run = model.resolve().parents[1]
            return Source(model, card, run if (run / "recipe.json").is_file() else None)
    raise InputError(f"{path}: found no run, stage or model of pitlm, expected recipe.json, model/pit.json or pit.json")


def check_apart(source: Source, output: Path) -> None:
    """Before anything is replaced: is the output no part of what is exported, nor around it?

    Raises:
        InputError: it is.
    """
    root, place = (source.run or source.model).resolve(), output.resolve()
    if place.is_relative_to(root) or root.is_relative_to(place):
        raise InputError(f"{output}: found a folder of what is exported ({root}), expected one outside of it")


def export(source: Source, output: Path, *, name: str, dtype: Dtype | None = None, adapter: bool = False) -> None:
    """Write the model, its calibration and its card into a folder, which appears whole or not at all.

    Args:
        name: what users will load it by.
        adapter: its adapter over the base of the run, in place of merged weights.

    Raises:
        InputError: no adapter there, or files that cannot be read.
    """
    quiet()
    recipe = stored_recipe(source.run) if source.run else None
    with atomic_folder(output) as folder:
        if adapter:
            export_adapter(source.model, source.card, folder)
        else:
            temperature = _temperature(recipe, source.card.kind)
            export_model(source.model, source.card, folder, dtype=dtype, temperature=temperature)
        if (calibration := source.model / CALIBRATION).is_file():
            write_text(folder / CALIBRATION, calibration.read_text(encoding="utf-8"))
        write_text(folder / "README.md", model_card(source, recipe, name, adapter=adapter))


def model_card(source: Source, recipe: Recipe | None, name: str, *, adapter: bool) -> str:
    """The card with the metadata that a hub wants: ours, in the format of huggingface_hub."""
    public = _public(recipe) if recipe else None
    base = adapter_base(source.model) or (recipe.model.base if recipe else None)
    base = base if base and _on_hub(base) else None
    known: dict[str, Any] = {}
    if source.run and public:
        known["recipe"] = yaml.safe_dump(public.model_dump(exclude_defaults=True), sort_keys=False).strip()
        data = stage_result(source.run, "data")
        known["data_line"] = f"{public.data.source}, seed {public.seed}. {data_line(data)}"
        record = stage_record(source.run, "evaluation")
        if record is not None and record["status"] == "done":
            known["report"] = read_report(Context(public, source.run), rl_stages(public))
        calibrations = load_calibrations(source.run / "gap" / "model").values()
        known["promises"] = [_promise(found) for found in calibrations if math.isfinite(found.margin)]
    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=PIPELINES.get(source.card.kind, "text-classification"),
        base_model=base,
        datasets=[recipe.data.source] if recipe and recipe.data.source and _on_hub(recipe.data.source) else None,
        tags=["pit", "self-improvement", source.card.kind],
    )
    page = CardPage(name, source.card.kind, source.card.ask, __version__, adapter=adapter, base=base, **known)
    return f"---\n{metadata.to_yaml()}\n---\n\n{render_card(page)}"


def check_hub(name: str, source: Source, *, adapter: bool) -> None:
    """Before anything is spent: could this be pushed?

    Raises:
        InputError: offline, a name that no hub takes, or an adapter over a base that only this machine has.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub: found '{name}', expected OWNER/NAME: {first_line(error)}") from error
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push-to-hub: found HF_HUB_OFFLINE set, expected a hub: unset it, or export with -o alone")
    base = adapter_base(source.model)
    if adapter and base and not _on_hub(base):
        raise InputError(f"--adapter: found a base that only this machine has ({base}), expected one of the hub")


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload an exported folder; returns where it is.

    Raises:
        InputError: no token, no hub in reach, or one that refuses.
    """
    with _hub_errors(name):
        api = HfApi()
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Exported by pitlm {__version__}")
    return str(url)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise InputError(
            f"--push-to-hub {name}: found no token, expected HF_TOKEN, or `hf auth login` first"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise InputError(f"--push-to-hub {name}: the hub at {constants.ENDPOINT}: {first_line(error)}") from error


def export_to(
    source: Source, output: Path | None, *, hub: str | None, private: bool, dtype: Dtype | None, adapter: bool
) -> str | None:
    """Export into a folder, to a hub by way of one, or both; returns where it is on the hub.

    Raises:
        InputError: as :func:`export` and :func:`push`.
    """
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
        export(source, folder, name=hub or folder.name, dtype=dtype, adapter=adapter)
        return push(folder, hub, private=private) if hub else None


def _temperature(recipe: Recipe | None, kind: Kind) -> float | None:
    if recipe is None:
        return None
    return recipe.loop.temperature if kind == "improver" else recipe.evaluation.policy_temperature


def _promise(found: Calibration) -> str:
    return (
        f"The loop with {found.scorer} and a margin of {found.margin:.3g}: at most {found.harm:.1%} of the answers are "
        f"made worse, with confidence {found.confidence:.0%}, by {found.judge} on {found.items} answers."
    )


def _on_hub(name: str) -> bool:
    return name != POCKET and not Path(name).is_absolute() and not Path(name).exists()


def _public(recipe: Recipe) -> Recipe:
    """Without the folders of this machine: of a path its last part."""

    def last(name: str | None) -> str | None:
        return name if name is None or _on_hub(name) else Path(name).name

    data = recipe.data.model_copy(update={"source": last(recipe.data.source)})
    changes = {"base": last(recipe.model.base), "reward_base": last(recipe.model.reward_base)}
    return recipe.model_copy(update={"data": data, "model": recipe.model.model_copy(update=changes)})
