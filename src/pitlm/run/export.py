"""Exporting a model of a run: a checkpoint that any engine loads, with its card, into a folder or to the hub.

The hub is Hugging Face's, or the server that HF_ENDPOINT names.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, constants, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from pitlm import __version__
from pitlm.core.errors import InputError
from pitlm.core.evaluation_section import EvaluationSection
from pitlm.core.loop_section import LoopSection
from pitlm.core.recipe import Recipe
from pitlm.data.readers import check_outside
from pitlm.io.atomic import atomic_folder, write_text
from pitlm.io.visible import one_line
from pitlm.loop.baselines.baseline import ORIGINAL, PIT, SFT
from pitlm.loop.calibration import CALIBRATION_FILE, load_calibrations
from pitlm.models.checkpoint_export import export_adapter, export_weights, exported_temperature
from pitlm.models.loading import Card, Kind, quiet
from pitlm.models.lora import CONFIG, base_name, is_adapter
from pitlm.report.pages import Origin, model_card
from pitlm.run.folder import stage_record, stage_result, stored_recipe
from pitlm.run.results import data_line, run_report
from pitlm.worlds.known import KNOWN

EXPORTED = re.compile(r".*\.(safetensors|json|jinja|model)|README\.md|merges\.txt|vocab\.txt").fullmatch
"""Names of the files that an export may have."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model to export, with the recipe of its run. The recipe is None for a model outside a run."""

    model: Path
    card: Card
    recipe: Recipe | None = None

    @classmethod
    def of(cls, folder: Path, model: Kind | None = None) -> Source:
        """Find the model by the folder of a run, of a stage, or of the model itself.

        Args:
            model: which model of a run; by default the improver.

        Raises:
            InputError: none of the three, an exported adapter, a stage that is not done, a run without evaluation, or
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
        for stage in (here, here.parent) if here.name == "model" else (here,):
            if (stage / "stage.json").is_file():
                return cls._of_stage(stage)
        if (card := Card.load(here)) is None:
            raise InputError(
                f"{folder}: found neither recipe.json, stage.json nor pit.json, "
                "expected the folder of a run, of a stage or of a model"
            )
        if (here / CONFIG).is_file() and not (here / "config.json").is_file():
            raise InputError.at(folder, found="an adapter that was exported", expected="whole weights, or its run")
        return cls(here, card)

    @classmethod
    def _of_stage(cls, folder: Path) -> Source:
        run, model = folder.parent, folder / "model"
        stage_result(run, folder.name)
        if (card := Card.load(model)) is None:
            raise InputError(f"{folder}: found a stage without a model, expected one that trains one")
        return cls(model, card, stored_recipe(run) if (run / "recipe.json").is_file() else None)

    @property
    def run(self) -> Path:
        """The folder of the run, if the model lies in a run."""
        return self.model.parent.parent


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
    """Export a model into a folder, to the hub, or both. Yield a line about each export when it is done.

    Args:
        output, repository: at least one of the two; without ``output`` nothing stays on this machine.
        private: the repository has to be private.
        replace: an earlier export in ``output`` may be replaced.
        dtype: type of the weights; None leaves the weights as they are.
        adapter: write the adapter over the base of the run, not whole weights.

    Raises:
        InputError: an output that must not be written to, no adapter, nothing loadable, or the hub refuses. If the
            folder was written before, the message names it.
    """
    if output is not None:
        _check_output(source, output, replace=replace)
    if adapter:
        _check_adapter(source.model, on_hub=repository is not None)
    if repository is not None:
        repository = _open_repository(repository, private=private)
    with TemporaryDirectory() as temporary:
        place = Path(temporary, "model") if output is None else output.resolve()
        with atomic_folder(place) as made:
            name = repository or place.name
            _export(source, made, name, on_hub=repository is not None, dtype=dtype, adapter=adapter)
        if output is not None:
            yield f"Exported {source.card.kind}: {output}"
        if repository is not None:
            try:
                yield f"Pushed{'' if output else f' {source.card.kind}'}: {_upload(place, repository)}"
            except InputError as error:
                raise InputError(f"{error}. The export is in {output}" if output else str(error)) from error


def _check_adapter(model: Path, *, on_hub: bool) -> None:
    """Refuse an adapter that does not exist, or whose base is a folder that people on the hub do not have."""
    if not is_adapter(model):
        raise InputError(
            f"--adapter: found none over the run's base in {model}, expected a model that was trained with LoRA; "
            "leave out --adapter"
        )
    if on_hub and Path(base := base_name(model)).is_absolute():
        raise InputError(
            f"--adapter: found one over {base}, a folder that others do not have, expected one over a base of the "
            "hub; push whole weights, without --adapter"
        )


def _check_output(source: Source, output: Path, *, replace: bool) -> None:
    """Refuse an output that is a file, has other content, holds the source, or lies in the source.

    Args:
        replace: an earlier export may be there.
    """
    place = output.resolve()
    if output.exists() and not output.is_dir():
        raise InputError.at(output, found="a file", expected="the folder that the model goes to")
    # The export is made beside this folder, and then takes its place.
    if Path.cwd().is_relative_to(place):
        raise InputError.at(output, found="the current folder, or one around it", expected="another; give -o")
    if output.is_mount():
        raise InputError.at(output, found="a mount point", expected="a folder in it; give -o")
    check_outside(source.run if source.recipe else source.model, output, option="-o")
    if not output.exists() or not any(output.iterdir()):
        return
    if not replace:
        raise InputError(f"{output}: found a folder that is not empty; give another -o, or --force to replace it")
    if not (output / "pit.json").is_file() or (place.parent / "stage.json").is_file():
        raise InputError.at(output, found="no export", expected="an earlier export to replace")
    if other := next((path.name for path in output.iterdir() if path.is_dir() or not EXPORTED(path.name)), None):
        raise InputError.at(output, found=f"a folder with '{other}' in it", expected="nothing but an export")


def _export(source: Source, folder: Path, name: str, *, on_hub: bool, dtype: str | None, adapter: bool) -> None:
    """Write a model with its card into an empty folder.

    Args:
        name: what the card calls the model: a name on the hub, or that of a folder.
    """
    quiet()
    card, temperature = source.card, _temperature(source)
    shown: dict[str, Any] = {"adapter": None, "dtype": None, "temperature": temperature if card.writes else None}
    if adapter:
        base, rank = export_adapter(source.model, folder, card)
        shown["adapter"] = Path(base).name if Path(base).is_absolute() else base, rank
    else:
        shown["dtype"] = export_weights(source.model, folder, card, temperature=temperature, dtype=dtype)
    if (source.model / CALIBRATION_FILE).is_file():
        shutil.copyfile(source.model / CALIBRATION_FILE, folder / CALIBRATION_FILE)
    gap = source.run / "gap" / "model" if source.recipe else source.model
    shown["promises"] = list(load_calibrations(gap).values()) if card.kind in ("improver", "gap") else []
    write_text(folder / "README.md", model_card(card, _origin(source), name=name, on_hub=on_hub, **shown))


def _temperature(source: Source) -> float:
    """The sampling temperature of the run, of an earlier export, or by default."""
    recipe = source.recipe
    if recipe is None and (known := exported_temperature(source.model)) is not None:
        return known
    if source.card.kind == "policy":
        return (recipe.evaluation if recipe else EvaluationSection()).policy_temperature
    return (recipe.loop if recipe else LoopSection()).temperature


def _origin(source: Source) -> Origin | None:
    """The origin of a stage's model, from the records of its run, without the paths of this machine."""
    recipe, run, stage = source.recipe, source.run, source.model.parent.name
    if recipe is None:
        return None
    data, record = stage_result(run, "data"), stage_record(run, "data") or {}
    on_hub = {key: record["settings"].get(key) for key in ("data.source", "model.base", "model.reward_base")}
    server, world = {"rollout_server"}, recipe.data.world
    tree = recipe.model_dump(mode="json", exclude={"policy_rl": server, "curriculum": {"rl": server}})
    for key, name in on_hub.items():
        section, field = key.split(".")
        if name is None and (path := tree[section][field]) is not None:
            tree[section][field] = Path(path).name or path
    start = "reward_base" if not source.card.writes and recipe.model.reward_base else "base"
    return Origin(
        recipe=tree,
        stage=stage,
        base=tree["model"][start] or "from scratch",
        source=KNOWN[world].name if world else tree["data"]["source"],
        hub_base=on_hub[f"model.{start}"],
        hub_source=None if world else on_hub["data.source"],
        version=record["version"],
        reading=data_line(data),
        folds={name: fold["pairs"] for name, fold in data["folds"].items()},
        results=run_report(run, recipe),
        row={recipe.improver_stage: PIT, "improver-sft": SFT, recipe.policy_stage: ORIGINAL}.get(stage, ""),
        world=world,
    )


def _open_repository(name: str, *, private: bool) -> str:
    """Make the repository of a model, unless it exists.

    Returns:
        The whole name of the repository, with its owner.

    Raises:
        InputError: not online, no token, an impossible name, a refusal, or a public repository where a
            private one is wanted.
    """
    if is_offline_mode():
        raise InputError("--push-to-hub: found HF_HUB_OFFLINE set, expected to be online; unset it")
    if get_token() is None:
        raise InputError("--push-to-hub: found no token; run `hf auth login`, or set HF_TOKEN")
    with _explained(name):
        made = HfApi().create_repo(name, private=private or None, exist_ok=True).repo_id
        public = private and not HfApi().model_info(made).private
    if public:
        raise InputError(f"--push-to-hub {name}: found a public repository, expected a private one (--private)")
    return str(made)


def _upload(folder: Path, name: str) -> str:
    """Upload a folder as one commit; files that the repository has already are not sent.

    Returns:
        The address of the commit.

    Raises:
        InputError: the hub refuses, or the connection was lost; the same command goes on.
    """
    with _explained(name):
        commit = HfApi().upload_folder(folder_path=folder, repo_id=name, commit_message=f"pit export ({__version__})")
    return str(commit.commit_url)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the errors of the hub's client into one message."""
    try:
        yield
    except HfHubHTTPError as error:
        status, said = error.response.status_code, error.server_message or str(error)
        hint = "; is the token one that may write there?" if status in (401, 403) else ""
        raise InputError(f"--push-to-hub {name}: refused ({status}): {one_line(said)}{hint}") from error
    except HTTPError as error:
        raise InputError(f"--push-to-hub {name}: cannot reach {constants.ENDPOINT}: {one_line(str(error))}") from error
    except (OSError, ValueError, RuntimeError) as error:  # a bad name, or the transfer of a file failed
        raise InputError(f"--push-to-hub {name}: {one_line(str(error))}") from error
