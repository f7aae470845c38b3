"""Improving answers with the models of a finished run, or with models given by path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from pitlm.batch.batch_job import BatchJob
from pitlm.batch.finished_rows import Journal
from pitlm.batch.job_progress import print_trace, run_job
from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Trace
from pitlm.core.recipe import LoopSection, ModelChoice, Recipe, TemplateSection
from pitlm.data.items import Failure, Item, read_items
from pitlm.engines.engine import Engine, ModelSource, open_engine
from pitlm.io.console import make_console
from pitlm.loop.loop import margin_for
from pitlm.models.adapters import Bases
from pitlm.models.calibration import ALONE, GUARDED, Calibration, load_calibrations
from pitlm.models.loading import Kind, load_card, quiet
from pitlm.models.scorers import GapModel, GuardedGap
from pitlm.run.finished import stored_recipe


def improve_file(
    file: Path, output: Path, models: ModelChoice, settings: Mapping[str, Any], *, seed: int, force: bool = False
) -> None:
    """Improve each answer of a file, going on from where an earlier attempt was stopped.

    Settings that are None come from the run's recipe, or from the recipe's defaults.

    Raises:
        InputError: nothing to read, missing models, another job under way for this output, or no row that could be
            improved.
    """
    next(read_items(file))  # what is wrong with the whole file shows before a model is loaded
    setup = Setup(models, settings, seed)
    named = {"input": str(file.resolve()), **setup.named}
    with Journal(output, named, fresh=force) as journal:
        run_job(file, journal, setup.job, setup.calibration)
    setup.doubt()


def improve_one(
    prompt: str, response: str | None, models: ModelChoice, settings: Mapping[str, Any], *, seed: int
) -> Trace:
    """Improve one answer, and print what was done to it.

    Raises:
        InputError: missing models, a prompt that is too long, or no response and no policy.
    """
    setup = Setup(models, settings, seed)
    [[done]] = setup.job(iter([Item(0, Prompt.of(prompt), response, {}, "--prompt")]))
    if isinstance(done, Failure):
        raise InputError(f"{done.where}: {done.reason}")
    print_trace(make_console(), done[1])
    setup.doubt()
    return done[1]


class Setup:
    """What a job was told, and its models, which are loaded when they are first needed.

    Raises:
        InputError: no models of the right kinds there, or a calibration that cannot be read.
    """

    def __init__(self, models: ModelChoice, settings: Mapping[str, Any], seed: int) -> None:
        # Else MKL sums differently where a thread's buffers lie differently, and a job that was resumed would not end
        # with the same bytes on several threads. It reads this at its first product of matrices.
        os.environ.setdefault("MKL_CBWR", "AUTO")
        quiet()
        self.models, self.seed = models, seed
        self.recipe: Recipe | None = stored_recipe(models.run) if models.run is not None else None
        self.settings = (self.recipe.loop if self.recipe else LoopSection()).model_copy(
            update={name: value for name, value in settings.items() if value is not None}
        )
        self.opened: dict[str, Any] = {
            # Of a run that was trained with LoRA, one base carries all.
            "bases": Bases(self.recipe.model.dtype, self.recipe.quantize) if self.recipe else Bases(),
        }
        named = {**asdict(models), "tokens_per_batch": None}
        self.calibration: Calibration | None = None
        self._load_scorer = self._scorer(named)
        self._load_engine = self._engine(named)
        self.margin = margin_for(self.calibration, self.settings)
        self.named = {
            **{name: value for name, value in named.items() if value is not None},
            **self.settings.model_dump(),
            "margin": self.margin,
            "seed": seed,
        }

    @cached_property
    def _loaded(self) -> tuple[GapModel | GuardedGap, Engine]:
        return self._load_scorer(), self._load_engine()

    def job(self, items: Iterator[Item | Failure]) -> BatchJob:
        scorer, engine = self._loaded
        return BatchJob(
            items,
            engine=engine,
            gap=scorer,
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

    def _of_run(self, stage: str) -> Path:
        assert self.models.run is not None
        return self.models.run / stage / "model"

    def _model(self, folder: Path, kind: Kind, named: dict[str, Any]) -> Path:
        load_card(folder, kind)
        named[kind] = _stamp(folder)
        return folder

    def _scorer(self, named: dict[str, Any]) -> Callable[[], GapModel | GuardedGap]:
        """Loads a run's R_PIT with R_P's second opinion, or a gap model by itself."""
        gap = self._model(self.models.gap or self._of_run("gap"), "gap", named)
        self.calibration = load_calibrations(gap).get(ALONE if self.models.gap else GUARDED)
        if self.models.gap is not None:
            return partial(GapModel.from_pretrained, gap, **self.opened)
        reward = self._model(self._of_run("reward"), "reward", named)
        return partial(GuardedGap.from_pretrained, gap, reward, **self.opened)

    def _engine(self, named: dict[str, Any]) -> Callable[[], Engine]:
        models, recipe = self.models, self.recipe
        if models.engine == "endpoint":
            template = recipe.template if recipe else TemplateSection()
            source = self._source("improver", model=models.model, base_url=models.base_url, ask=template.ask)
        else:
            of_run = self._of_run(recipe.improver_stage) if recipe else Path()
            source = self._source("improver", folder=self._model(models.improver or of_run, "improver", named))
        return partial(open_engine, models.engine, source)

    def _answerer(self) -> Callable[[], Engine] | None:
        models, recipe = self.models, self.recipe
        if models.policy_model is not None:
            source = self._source("policy", model=models.policy_model, base_url=models.policy_url)
            return partial(open_engine, "endpoint", source)
        if models.policy is None and recipe is None:
            return None
        of_run = self._of_run(recipe.policy_stage) if recipe else Path()
        return partial(open_engine, "transformers", self._source("policy", folder=models.policy or of_run))

    def _source(self, kind: Literal["policy", "improver"], **where: Any) -> ModelSource:
        data = self.recipe.data if self.recipe else None
        most = (data.max_new_tokens or data.max_response_tokens) if data else None
        return ModelSource(kind, tokens_per_batch=self.models.tokens_per_batch, max_tokens=most, **self.opened, **where)


def _stamp(model: Path) -> str:
    """A model by its folder and when its weights were written: another training is another model."""
    written = [path.stat().st_mtime_ns for path in model.glob("*.safetensors")]
    return f"{model.resolve()} ({max(written, default=0)})"
