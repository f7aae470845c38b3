"""Improves one answer or a file of answers, with the models of a finished run or with models given by path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from pitlm.batch.batch_job import BatchJob
from pitlm.batch.finished_rows import Journal
from pitlm.batch.job_progress import job_progress, print_summary, print_trace
from pitlm.batch.model_choice import ModelChoice
from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Trace
from pitlm.core.recipe import LoopSection, Recipe, TemplateSection
from pitlm.data.items import Failure, Item, count_rows, read_items
from pitlm.engines.engine import Engine, ModelSource, open_engine
from pitlm.io.console import make_console
from pitlm.loop.calibration import load_calibrations, margin_for
from pitlm.models.adapters import Bases
from pitlm.models.loading import Kind, load_card, quiet
from pitlm.models.scorers import GapModel, GuardedGap
from pitlm.run.folder import stored_recipe


def improve_file(
    file: Path, output: Path, models: ModelChoice, loop: LoopSection, *, seed: int, force: bool = False
) -> None:
    """Improve each answer of a file, going on from where an earlier attempt was stopped.

    Settings that are not set in ``loop`` come from the run's recipe, or from the defaults.

    Raises:
        InputError: nothing to read, missing models, another job under way for this output, or no row that could be
            improved.
    """
    next(read_items(file))  # what is wrong with the whole file shows before a model is loaded
    setup = Setup(models, loop, seed)
    with Journal(output, {"input": str(file.resolve()), **setup.named}, fresh=force) as journal:
        if len(journal):
            make_console().print(Text(f"{len(journal)} rows are finished already; going on from there."))
        with job_progress(count_rows(file), len(journal)) as advance:
            for finished in setup.job(journal.unfinished(read_items(file))):
                advance(len(finished), journal.add(finished))
        failed = journal.finish()
        print_summary(journal, len(journal), failed, setup.calibration)
    setup.doubt()


def improve_one(prompt: str, response: str | None, models: ModelChoice, loop: LoopSection, *, seed: int) -> Trace:
    """Improve one answer, and print what was done to it.

    Raises:
        InputError: missing models, a prompt that is too long, or no response and no policy.
    """
    setup = Setup(models, loop, seed)
    [[done]] = setup.job(iter([Item(0, Prompt.of(prompt), response, {}, "--prompt")]))
    if isinstance(done, Failure):
        raise InputError(f"{done.where}: {done.reason}")
    print_trace(make_console(), done[1])
    setup.doubt()
    return done[1]


class Setup:
    """The models and settings of a job. The models are loaded when they are first needed.

    Attributes:
        settings: the settings of the loop.
        named: everything that changes an answer, by the name of the option or setting.

    Raises:
        InputError: no models of the right kinds there, or a calibration that cannot be read.
    """

    def __init__(self, models: ModelChoice, loop: LoopSection, seed: int) -> None:
        # Without this setting MKL sums differently where a thread's buffers lie differently, and a job that was resumed
        # would not end with the same bytes on several threads. MKL reads it at its first product of matrices.
        os.environ.setdefault("MKL_CBWR", "AUTO")
        quiet()
        self.models, self.seed = models, seed
        self.recipe = recipe = stored_recipe(models.run) if models.run is not None else None
        self.settings = (recipe.loop if recipe else LoopSection()).model_copy(
            update=loop.model_dump(exclude_unset=True)
        )
        self._folders = _model_folders(models, recipe)
        stamps: dict[str, str] = {}
        for kind, folder in self._folders.items():
            if kind != "policy":  # only a row without a response needs it
                load_card(folder, kind)
                stamps[kind] = _stamp(folder)
        scorer = GuardedGap if "reward" in stamps else GapModel
        self.calibration = load_calibrations(self._folders["gap"]).get(scorer.name)
        self.margin = margin_for(self.calibration, self.settings)
        told = models.model_dump(exclude={"tokens_per_batch", "workers", "part_rows"}, exclude_none=True)
        self.named = {**told, **stamps, **self.settings.model_dump(), "margin": self.margin, "seed": seed}
        # One base carries all models that were trained with LoRA.
        self._bases = Bases(recipe.model.dtype, recipe.quantize) if recipe else Bases()

    @cached_property
    def _scorer(self) -> GapModel | GuardedGap:
        """A run's R_PIT with R_P's second opinion, or a gap model by itself."""
        gap = self._folders["gap"]
        if "reward" in self._folders:
            return GuardedGap.from_pretrained(gap, self._folders["reward"], bases=self._bases)
        return GapModel.from_pretrained(gap, bases=self._bases)

    @cached_property
    def _engine(self) -> Engine:
        template = self.recipe.template if self.recipe else TemplateSection()
        models = self.models
        return self._open("improver", models.engine, model=models.model, base_url=models.base_url, ask=template.ask)

    def _answerer(self) -> Callable[[], Engine] | None:
        models = self.models
        if models.policy_model is not None:
            return partial(self._open, "policy", "endpoint", model=models.policy_model, base_url=models.policy_url)
        return partial(self._open, "policy", "transformers") if "policy" in self._folders else None

    def _open(self, kind: Literal["policy", "improver"], engine: str, **named: Any) -> Engine:
        data = self.recipe.data if self.recipe else None
        most = (data.max_new_tokens or data.max_response_tokens) if data else None
        folder, tokens = self._folders.get(kind), self.models.tokens_per_batch
        return open_engine(engine, ModelSource(kind, folder, self._bases, tokens, max_tokens=most, **named))

    def job(self, items: Iterator[Item | Failure]) -> BatchJob:
        """Return the job that improves the items; the first call loads the models."""
        return BatchJob(
            items,
            engine=self._engine,
            gap=self._scorer,
            settings=self.settings,
            margin=self.margin,
            seed=self.seed,
            make_answerer=self._answerer(),
            answer_temperature=self.recipe.evaluation.policy_temperature if self.recipe else 1.0,
        )

    def doubt(self) -> None:
        """Say where the loop is not the one that the margin was calibrated for."""
        if self.calibration and (doubt := self.calibration.doubt(self.settings)):
            make_console().print(Text(f"Warning: {doubt}."))


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
    written = [path.stat().st_mtime_ns for path in model.glob("*.safetensors")]
    return f"{model.resolve()} ({max(written, default=0)})"
