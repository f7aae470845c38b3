"""Exporting a model of a run: a checkpoint that any engine loads, with a card that says what it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pitlm.core.errors import InputError
from pitlm.core.recipe import EvaluationSection, LoopSection
from pitlm.data.readers import check_outside
from pitlm.io.atomic import atomic_folder, write_text
from pitlm.loop.baselines.baseline import ORIGINAL, PIT, SFT
from pitlm.loop.calibration import CALIBRATION_FILE, load_calibrations
from pitlm.models.adapters import CONFIG, OVER_BASE, base_name
from pitlm.models.checkpoint_export import export_adapter, export_weights, exported_temperature
from pitlm.models.loading import Card, Kind, quiet
from pitlm.report.card import Exported, Origin, model_card
from pitlm.run.folder import stage_record, stage_result, stored_recipe
from pitlm.run.hub import open_repository, upload
from pitlm.run.results import data_line, run_report


@dataclass(frozen=True, slots=True)
class Source:
    """A model to export. ``run`` and ``stage`` say where the model comes from, if it lies in a run."""

    model: Path
    card: Card
    run: Path | None = None
    stage: str = ""

    @classmethod
    def of(cls, folder: Path, model: Kind | None = None) -> Source:
        """Find the model by the folder of a run, of a stage, or of the model itself.

        Args:
            model: which model of a run; by default the improver.

        Raises:
            InputError: none of the three, an adapter alone, a stage that is not done, a run without evaluation, or
                ``model`` beside something other than a run.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: found no such folder, expected that of a run, a stage or a model")
        here = folder.resolve()
        if (here / "recipe.json").is_file():
            recipe = stored_recipe(here)
            stages = {"improver": recipe.improver_stage, "policy": recipe.policy_stage}
            stage_result(here, "evaluation")
            return cls._of_stage(here / stages.get(model or "improver", model or ""))
        if model is not None:
            raise InputError(f"--model: found beside {folder}, expected beside the folder of a run")
        if (here / "stage.json").is_file():
            return cls._of_stage(here)
        if here.name == "model" and (here.parent / "stage.json").is_file():
            return cls._of_stage(here.parent)
        if (card := Card.load(here)) is None:
            raise InputError(
                f"{folder}: found neither recipe.json, stage.json nor pit.json, "
                "expected the folder of a run, of a stage or of a model"
            )
        if (here / CONFIG).is_file():
            raise InputError.at(folder, found="an adapter that was exported", expected="whole weights, or its run")
        return cls(here, card)

    @classmethod
    def _of_stage(cls, folder: Path) -> Source:
        stage_result(folder.parent, folder.name)
        if (card := Card.load(folder / "model")) is None:
            raise InputError(f"{folder}: found a stage without a model, expected one that trains one")
        run = folder.parent if (folder.parent / "recipe.json").is_file() else None
        return cls(folder / "model", card, run, folder.name)

    def check_adapter(self, *, on_hub: bool) -> None:
        """Refuse an adapter that does not exist, or that nobody else can use.

        Args:
            on_hub: other people get the adapter, so its base must be on the hub too.

        Raises:
            InputError: the model was not trained with LoRA, or the base is a folder of this machine.
        """
        if not (self.model / OVER_BASE).is_dir():
            raise InputError(
                f"--adapter: found none over the run's base in {self.model}, expected a model that was trained with "
                "LoRA (not of its embeddings); leave out --adapter"
            )
        base = base_name(self.model)
        if on_hub and Path(base).is_absolute():
            raise InputError(
                f"--adapter: found one over {base}, a folder that others do not have, expected one over a base of the "
                "hub; push whole weights, without --adapter"
            )

    def check_output(self, output: Path, *, replace: bool) -> None:
        """Refuse a folder that must not be written to.

        Args:
            replace: an earlier export may be there.

        Raises:
            InputError: a file, a folder with something else in it, or one that holds the source or lies in it.
        """
        if output.exists() and not output.is_dir():
            raise InputError.at(output, found="a file", expected="the folder that the model goes to")
        # The export is made beside this folder, and then takes its place.
        if Path.cwd().is_relative_to(output.resolve()):
            raise InputError.at(output, found="the current folder, or one around it", expected="another; give -o")
        if output.is_mount():
            raise InputError.at(output, found="a mount point", expected="a folder in it; give -o")
        check_outside(self.run or self.model, output, option="-o")
        if self.model.is_relative_to(output.resolve()):
            raise InputError.at(output, found="a folder that holds the source", expected="another; give -o")
        if not output.exists() or not any(output.iterdir()):
            return
        if not replace:
            raise InputError(f"{output}: found a folder that is not empty; give another -o, or --force to replace it")
        if not (output / "pit.json").is_file():
            raise InputError.at(output, found="a folder without pit.json", expected="an earlier export to replace")
        if other := next((path.name for path in output.iterdir() if path.is_dir()), None):
            raise InputError.at(output, found=f"a folder with '{other}' in it", expected="nothing but an export")


def deliver(
    source: Source,
    output: Path | None,
    *,
    repository: str | None = None,
    private: bool = False,
    replace: bool = False,
    dtype: str | None = None,
    adapter: bool = False,
) -> Iterator[str]:
    """Export a model into a folder, to the hub, or both; yields a line about each when it is done.

    Args:
        output, repository: at least one of the two; without ``output`` nothing stays on this machine.
        private: the repository has to be private.
        replace: an earlier export in ``output`` may be replaced.
        dtype, adapter: see :func:`export`.

    Raises:
        InputError: an output that must not be written to, no adapter, nothing loadable, or the hub refuses. If the
            folder was written before, the message names it.
    """
    if output is not None:
        source.check_output(output, replace=replace)
    if adapter:
        source.check_adapter(on_hub=repository is not None)
    if repository is not None:
        repository = open_repository(repository, private=private)
    place = None if output is None else output.resolve()
    with TemporaryDirectory() if place is None else atomic_folder(place) as made:
        name = repository or (place.name if place else "")
        export(source, Path(made), name=name, on_hub=repository is not None, dtype=dtype, adapter=adapter)
        if place is None and repository is not None:
            yield f"Pushed {source.card.kind}: {upload(Path(made), repository)}"
    if place is None:
        return
    yield f"Exported {source.card.kind}: {output}"
    if repository is not None:
        try:
            yield f"Pushed: {upload(place, repository)}"
        except InputError as error:
            raise InputError(f"{error}. The export is in {output}") from error


def export(
    source: Source, folder: Path, *, name: str, on_hub: bool, dtype: str | None = None, adapter: bool = False
) -> None:
    """Write a model with its card into an empty folder.

    Args:
        name: what the card calls it.
        on_hub: the name is one on the hub, not that of a folder.
        dtype: type of the weights; None leaves the weights as they are.
        adapter: write the adapter over the base of the run, not whole weights.

    Raises:
        InputError: nothing loadable there.
    """
    quiet()
    card, run = source.card, source.run
    temperature = _temperature(source)
    dtype_written, over = None, None
    if adapter:
        base, rank = export_adapter(source.model, folder, card)
        over = Path(base).name if Path(base).is_absolute() else base, rank
    else:
        dtype_written = export_weights(source.model, folder, card, temperature=temperature, dtype=dtype)
    if (source.model / CALIBRATION_FILE).is_file():
        shutil.copyfile(source.model / CALIBRATION_FILE, folder / CALIBRATION_FILE)
    gap = source.model if run is None else run / "gap" / "model"
    page = Exported(
        card,
        name,
        on_hub,
        temperature=temperature if card.writes else None,
        dtype=dtype_written,
        adapter=over,
        promises=tuple(load_calibrations(gap).values()) if card.kind in ("improver", "gap") else (),
        origin=None if run is None else _origin(run, source.stage, writes=card.writes),
    )
    write_text(folder / "README.md", model_card(page))


def _temperature(source: Source) -> float:
    recipe = stored_recipe(source.run) if source.run is not None else None
    if recipe is None and (known := exported_temperature(source.model)) is not None:
        return known
    if source.card.kind == "policy":
        return (recipe.evaluation if recipe else EvaluationSection()).policy_temperature
    return (recipe.loop if recipe else LoopSection()).temperature


def _origin(run: Path, stage: str, *, writes: bool) -> Origin:
    """What a run says of the model of one of its stages, without the paths of this machine."""
    recipe, data = stored_recipe(run), stage_result(run, "data")
    record = stage_record(run, "data") or {}
    on_hub = {key: record["settings"].get(key) for key in ("data.source", "model.base", "model.reward_base")}
    server = {"rollout_server"}
    tree = recipe.model_dump(mode="json", exclude={"policy_rl": server, "curriculum": {"rl": server}})
    for key, name in on_hub.items():
        section, field = key.split(".")
        if name is None and (path := tree[section][field]) is not None:
            tree[section][field] = Path(path).name or path
    start = "reward_base" if not writes and recipe.model.reward_base else "base"
    return Origin(
        recipe=tree,
        stage=stage,
        base=tree["model"][start] or "from scratch",
        hub_source=None if recipe.data.pocket else on_hub["data.source"],
        hub_base=on_hub[f"model.{start}"],
        version=record["version"],
        reading=data_line(data),
        folds={name: fold["pairs"] for name, fold in data["folds"].items()},
        results=run_report(run, recipe),
        row={recipe.improver_stage: PIT, "improver-sft": SFT, recipe.policy_stage: ORIGINAL}.get(stage, ""),
        pocket=recipe.data.pocket,
    )
