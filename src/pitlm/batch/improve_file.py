"""Improves one answer or a file of answers, with the models of a finished run or with models given by path."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from pitlm.batch.batch_job import BatchJob
from pitlm.batch.finished_rows import Journal
from pitlm.batch.job_health import health
from pitlm.batch.model_choice import ModelChoice
from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Prompt, Trace
from pitlm.core.recipe import Recipe
from pitlm.data.items import Failure, Item, count_rows, read_items
from pitlm.data.row_fields import IMPROVED
from pitlm.engines.engine import Engine, ModelSource, open_engine
from pitlm.io.console import progress_bar
from pitlm.io.templates import template
from pitlm.io.visible import echo
from pitlm.loop.calibration import load_calibrations, margin_for
from pitlm.models.adapters import Bases
from pitlm.models.loading import Kind, load_card, quiet
from pitlm.models.scorers import GapModel, GuardedGap, load_gaps
from pitlm.run.folder import stored_recipe

if TYPE_CHECKING:
    from pitlm.batch.cluster import PartedJob

WATCHED = 10_000
"""The health of a job is read from at most this many traces, spread over the file."""


def improve_file(file: Path, output: Path, setup: Setup, *, force: bool = False) -> None:
    """Improve each answer of a file, going on from where an earlier attempt was stopped.

    Raises:
        InputError: nothing to read, another job under way for this output, or no row that could be improved.
    """
    with Journal(output, {"input": str(file.resolve()), **setup.named}, fresh=force) as journal:
        with job_progress(file, len(journal), f"{len(journal)} rows") as advance:
            for finished in setup.job(journal.unfinished(read_items(file))):
                advance(len(finished), journal.add(finished))
        setup.summarise(journal, len(journal), journal.finish())


def improve_one(prompt: str, response: str | None, setup: Setup) -> None:
    """Improve one answer, and print each round of its loop.

    Raises:
        InputError: a prompt that is too long, or no response and no policy.
    """
    [[done]] = setup.job(iter([Item(0, Prompt.of(prompt), response, {}, "--prompt")]))
    if isinstance(done, Failure):
        raise InputError(f"{done.where}: {done.reason}")
    echo("\n".join([template("pitlm.batch", "trace.j2").render(trace=done[1]), *setup.doubts()]))


@contextmanager
def job_progress(file: Path, done: int, begun: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar over the rows of a file. Yield the function to call with the numbers of further rows and tokens.

    Args:
        done: how many rows an earlier attempt finished; ``begun`` says the same in words.
    """
    if done:
        echo(f"{begun} are finished already; going on from there.")
    rows, tokens, begin = 0, 0, monotonic()

    def speed() -> str:
        passed = monotonic() - begin
        return f"{rows / passed:.1f} rows/s, {tokens / passed:.0f} tokens/s"

    with progress_bar("improving", count_rows(file), speed, done) as move:

        def advance(more: int, generated: int) -> None:
            nonlocal rows, tokens
            rows, tokens = rows + more, tokens + generated
            move(more)

        yield advance


class Setup:
    """The models and settings of a job. The models are loaded when they are first needed.

    Settings that are not set in ``loop`` come from the run's recipe, or from the defaults.

    Attributes:
        models: as given, with absolute paths, which hold in other processes too.
        settings: the settings of the loop.
        named: everything that changes an answer, by the name of the option or setting.

    Raises:
        InputError: no models of the right kinds there, or a calibration that cannot be read.
    """

    def __init__(self, models: ModelChoice, loop: LoopSection, seed: int) -> None:
        # Without this setting the sums of MKL depend on the addresses of a thread's buffers, and a resumed job could
        # write different bytes on several threads. MKL reads the setting at its first product of matrices.
        os.environ.setdefault("MKL_CBWR", "AUTO")
        quiet()
        folders = {name: value.absolute() for name, value in models if isinstance(value, Path)}
        self.models, self.loop, self.seed = models.model_copy(update=folders), loop, seed
        self.recipe = recipe = stored_recipe(models.run) if models.run is not None else None
        self.settings = loop.over(recipe.loop if recipe else LoopSection())
        self._folders = _model_folders(models, recipe)
        # Only a row without a response needs the policy, so its card is not read here.
        cards = {kind: load_card(folder, kind) for kind, folder in self._folders.items() if kind != "policy"}
        stamps: dict[str, str] = {kind: _stamp(self._folders[kind]) for kind in cards}
        self._card = cards["gap"]
        scorer = GuardedGap if "reward" in stamps else GapModel
        self.calibration = load_calibrations(self._folders["gap"]).get(scorer.name)
        self.margin = margin_for(self.calibration, self.settings)
        told = self.models.model_dump(exclude={"tokens_per_batch", "workers", "part_rows"}, exclude_none=True)
        self.named = {**told, **stamps, **self.settings.model_dump(), "margin": self.margin, "seed": seed}
        # One base carries all models that were trained with LoRA.
        self._bases = Bases(recipe.model.dtype, recipe.quantize) if recipe else Bases()

    @cached_property
    def job(self) -> Callable[[Iterator[Item | Failure]], BatchJob]:
        """A function that makes the job for some items. The first access to this property loads the models."""
        models, recipe, folders = self.models, self.recipe, self._folders
        named = {"model": models.model, "base_url": models.base_url, "ask": self._card.ask}
        improver = self._open("improver", models.engine, **named)
        make_answerer = None
        if models.policy_model is not None:
            named = {"model": models.policy_model, "base_url": models.policy_url}
            make_answerer = partial(self._open, "policy", "endpoint", **named)
        elif "policy" in folders:
            make_answerer = partial(self._open, "policy", "transformers")
        gap = load_gaps(folders["gap"], folders.get("reward"), self._bases)
        temperature = recipe.evaluation.policy_temperature if recipe else 1.0
        first: dict[str, Any] = {"make_answerer": make_answerer, "answer_temperature": temperature}
        loop: dict[str, Any] = {"settings": self.settings, "margin": self.margin, "seed": self.seed}
        return partial(BatchJob, engine=improver, gap=gap, **loop, **first)

    def _open(self, kind: Literal["policy", "improver"], engine: str, **named: Any) -> Engine:
        given = kind, self._folders.get(kind), self._bases, self.models.tokens_per_batch
        return open_engine(engine, ModelSource(*given, max_tokens=self._card.max_new_tokens, **named))

    def doubts(self) -> list[str]:
        """A line that warns if the margin was calibrated for another loop; otherwise no line."""
        doubt = self.calibration and self.calibration.doubt(self.settings)
        return [f"Warning: {doubt}."] if doubt else []

    def summarise(self, job: Journal | PartedJob, rows: int, failed: int) -> None:
        """Print a summary of a finished job.

        Args:
            rows: the number of rows of the input, of which ``failed`` could not be improved.
        """
        traces, stride = list[Trace](), 1 + rows // WATCHED
        reasons, changed = Counter[str](), 0
        for number, row in enumerate(job.made()):
            made = row[IMPROVED]
            reasons[made["stop_reason"]] += 1
            changed += made["final"] != made["original"]
            if number % stride == 0:
                traces.append(Trace.from_dict({**made, "prompt": ""}))
        about = {"reasons": reasons, "changed": changed, "job": job, "failed": failed}
        made = template("pitlm.batch", "finished.j2").render(about).splitlines()
        echo("\n".join([*made, *health(traces, self.calibration).sentences(), *self.doubts()]))


def _model_folders(models: ModelChoice, recipe: Recipe | None) -> dict[Kind, Path]:
    """Return the folders of the models that the job may need: those that were given, else the run's."""
    found: dict[Kind, Path | None] = {"gap": models.gap, "improver": models.improver, "policy": models.policy}
    if recipe is not None and models.run is not None:
        stages: dict[Kind, str] = {"gap": "gap", "improver": recipe.improver_stage, "policy": recipe.policy_stage}
        if models.gap is None:
            stages["reward"] = "reward"
        found |= {kind: models.run / stage / "model" for kind, stage in stages.items() if not found.get(kind)}
    if models.engine == "endpoint":
        del found["improver"]
    return {kind: folder for kind, folder in found.items() if folder is not None}


def _stamp(model: Path) -> str:
    """Name a model by its folder and the time its weights were written: another training makes another model."""
    return f"{model.resolve()} ({max((path.stat().st_mtime_ns for path in model.glob('*.safetensors')), default=0)})"
