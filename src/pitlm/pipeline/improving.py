"""Improving answers with the models of a finished run, or with models given by path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from rich.console import Console
from rich.progress import TextColumn
from rich.text import Text

from pitlm.core.config import LoopSection, Recipe, TemplateSection
from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Trace
from pitlm.improve.batch import BatchJob
from pitlm.improve.files import Failure, Item, count_rows, read_items
from pitlm.improve.health import health
from pitlm.improve.journal import Journal
from pitlm.improve.loop import margin_for
from pitlm.models.decoding import TOKENS_PER_BATCH
from pitlm.models.endpoint import ChatEndpoint
from pitlm.models.engines import EndpointEngine, Engine, LocalEngine, VLLMEngine
from pitlm.models.generators import Improver, Policy
from pitlm.models.loading import quiet
from pitlm.models.scorers import GapModel
from pitlm.pipeline.run import stored_recipe
from pitlm.pipeline.stages import improver_stage, policy_stage
from pitlm.runs.console import make_console, make_progress

EngineName = Literal["transformers", "vllm", "endpoint"]
WATCHED = 10_000
"""Traces that the health of a job is read from, at most, spread over the file."""


@dataclass(frozen=True, slots=True)
class Models:
    """Which models a job takes and what runs them. A path that is None is the run's.

    Attributes:
        policy: answers rows that have no response; or ``policy_model`` behind ``policy_url`` does.
        base_url, model: of the server that improves, where ``engine`` is ``endpoint``.
        tokens_per_batch: what is in flight may come to; None is the engine's default.
    """

    run: Path | None = None
    improver: Path | None = None
    gap: Path | None = None
    policy: Path | None = None
    engine: EngineName = "transformers"
    base_url: str | None = None
    model: str | None = None
    policy_url: str | None = None
    policy_model: str | None = None
    tokens_per_batch: int | None = None


def improve_file(
    file: Path, output: Path, models: Models, settings: Mapping[str, Any], *, seed: int, force: bool = False
) -> None:
    """Improve each answer of a file, going on from where an earlier attempt was stopped.

    Settings that are None come from the run's recipe, or from the recipe's defaults.

    Raises:
        InputError: nothing to read, missing models, another job under way for this output, or no row that could be
            improved.
    """
    setup = _Setup(models, settings, seed)
    console, seen = make_console(), [0]
    job = {"input": str(file.resolve()), **setup.named}
    with Journal(output, job, fresh=force) as journal:

        def unfinished() -> Iterator[Item | Failure]:
            for item in read_items(file):
                seen[0] += 1
                if item not in journal:
                    yield item

        if len(journal):
            console.print(Text(f"{len(journal)} rows are finished already; going on from there."))
        with make_progress(TextColumn("{task.fields[speed]}")) as progress:
            task = progress.add_task("improving", total=count_rows(file), completed=len(journal), speed="")
            rows, tokens, begin = 0, 0, monotonic()
            for finished in setup.job(unfinished()):
                journal.add(finished)
                rows += len(finished)
                tokens += sum(one[1].generated_tokens for one in finished if not isinstance(one, Failure))
                passed = monotonic() - begin
                speed = f"{rows / passed:.1f} rows/s, {tokens / passed:.0f} tokens/s"
                progress.update(task, advance=len(finished), speed=speed)
        failed = len(journal.failed)
        traces, stride = list[Trace](), 1 + len(journal) // WATCHED
        reasons, changed = Counter[str](), 0
        for number, made in enumerate(journal.made()):
            reasons[made["stop_reason"]] += 1
            changed += made["final"] != made["original"]
            if number % stride == 0:
                traces.append(Trace.from_dict({**made, "prompt": ""}))
        journal.finish(seen[0])
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    console.print(Text(f"{reasons.total()} answers, {changed} changed. Stopped: {listed}. Written to {output}"))
    if failed:
        console.print(Text(f"{failed} rows failed; they and the reasons are in {journal.failed_path}"))
    for warning in health(traces, setup.scorer.calibration).warnings:
        console.print(Text(warning))


def improve_one(prompt: str, response: str | None, models: Models, settings: Mapping[str, Any], *, seed: int) -> Trace:
    """Improve one answer, and print what was done to it.

    Raises:
        InputError: missing models, a prompt that is too long, or no response and no policy.
    """
    setup = _Setup(models, settings, seed)
    [[done]] = setup.job(iter([Item(0, Prompt.of(prompt), response, {}, "--prompt")]))
    if isinstance(done, Failure):
        raise InputError(f"{done.where}: {done.reason}")
    _print_trace(make_console(), done[1])
    return done[1]


class _Setup:
    """The loaded models of a job, and what it was told."""

    def __init__(self, models: Models, settings: Mapping[str, Any], seed: int) -> None:
        quiet()
        self.models, self.seed = models, seed
        self.recipe: Recipe | None = stored_recipe(models.run) if models.run is not None else None
        self.settings = (self.recipe.loop if self.recipe else LoopSection()).model_copy(
            update={name: value for name, value in settings.items() if value is not None}
        )
        gap = models.gap or self._of_run("gap")
        self.scorer = GapModel.from_pretrained(gap)
        self.margin = margin_for(self.scorer, self.settings)
        named = {**asdict(models), "tokens_per_batch": None, "gap": _stamp(gap)}
        self.engine = self._engine(named)
        self.named = {
            **{name: value for name, value in named.items() if value is not None},
            **self.settings.model_dump(),
            "margin": self.margin,
            "seed": seed,
        }

    def job(self, items: Iterator[Item | Failure]) -> BatchJob:
        return BatchJob(
            items,
            engine=self.engine,
            gap=self.scorer,
            settings=self.settings,
            margin=self.margin,
            seed=self.seed,
            make_answerer=self._answerer(),
            answer_temperature=self.recipe.evaluation.policy_temperature if self.recipe else 1.0,
        )

    def _of_run(self, stage: str) -> Path:
        assert self.models.run is not None
        return self.models.run / stage / "model"

    def _engine(self, named: dict[str, Any]) -> Engine:
        models, recipe = self.models, self.recipe
        if models.engine == "endpoint":
            template = recipe.template if recipe else TemplateSection()
            return EndpointEngine(
                self._endpoint(models.model, models.base_url, self.settings.temperature), template.ask
            )
        path = models.improver or self._of_run(improver_stage(recipe) if recipe else "")
        named["improver"] = _stamp(path)
        if models.engine == "vllm":
            return VLLMEngine(Improver.from_pretrained(path, weights=False), path)
        return LocalEngine(Improver.from_pretrained(path), models.tokens_per_batch or TOKENS_PER_BATCH)

    def _answerer(self) -> Callable[[], Engine] | None:
        models, recipe = self.models, self.recipe
        if models.policy_model is not None:
            temperature = recipe.evaluation.policy_temperature if recipe else 1.0
            return lambda: EndpointEngine(self._endpoint(models.policy_model, models.policy_url, temperature), None)
        if models.policy is None and recipe is None:
            return None
        path = models.policy or self._of_run(policy_stage(recipe) if recipe else "")
        return lambda: LocalEngine(Policy.from_pretrained(path), models.tokens_per_batch or TOKENS_PER_BATCH)

    def _endpoint(self, model: str | None, base_url: str | None, temperature: float) -> ChatEndpoint:
        assert model is not None
        data = self.recipe.data if self.recipe else None
        most = (data.max_new_tokens or data.max_response_tokens) if data else None
        return ChatEndpoint(model, base_url, temperature=temperature, max_tokens=most)


def _stamp(model: Path) -> str:
    """A model by its folder and when its weights were written: another training is another model."""
    written = [path.stat().st_mtime_ns for path in model.glob("*.safetensors")]
    return f"{model.resolve()} ({max(written, default=0)})"


def _print_trace(console: Console, trace: Trace) -> None:
    console.print(Text(f"original  {trace.original}"))
    for number, step in enumerate(trace.rounds, 1):
        decision = "accepted" if step.accepted else "rejected"
        console.print(Text(f"round {number}   {step.proposal}   (gap {step.gap:+.2f}, {decision})"))
    console.print(Text(f"final     {trace.final}"))
    console.print(Text(f"stopped: {trace.stop_reason}; {trace.generated_tokens} tokens generated"))
