"""Improving answers with the models of a finished run, or with models given by path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pitlm.core.config import LoopSection, Recipe
from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt, Trace
from pitlm.improve.files import Item, read_items, write_traces
from pitlm.improve.loop import improve_many
from pitlm.models.generators import Improver, Policy
from pitlm.models.loading import quiet
from pitlm.models.scorers import GapModel
from pitlm.pipeline.run import stored_recipe
from pitlm.pipeline.stages import improver_stage, policy_stage
from pitlm.runs.console import make_console, progress_bar

CHUNK = 256


def improve_answers(
    *,
    file: Path | None,
    output: Path | None,
    run: Path | None,
    improver: Path | None,
    gap: Path | None,
    prompt: str | None,
    response: str | None,
    rounds: int | None,
    margin: float | None,
    temperature: float | None,
    seed: int,
) -> list[Trace]:
    """Improve the answers of a file, or one answer; write or print the traces.

    Settings that are None come from the run's recipe, or from the recipe's defaults.

    Raises:
        InputError: bad rows, missing models, or a missing response with no policy to answer.
    """
    quiet()
    items = read_items(file) if file is not None else [Item(Prompt.of(prompt or ""), response, {}, "--prompt")]
    recipe = stored_recipe(run) if run is not None else None
    given = {"rounds": rounds, "margin": margin, "temperature": temperature}
    settings = (recipe.loop if recipe else LoopSection()).model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    if run is not None and recipe is not None:
        improver = improver or run / improver_stage(recipe) / "model"
        gap = gap or run / "gap" / "model"
    assert improver is not None
    assert gap is not None
    writer, scorer = Improver.from_pretrained(improver), GapModel.from_pretrained(gap)
    _check_lengths(writer, items)
    answered = _with_responses(items, run, recipe, seed)
    traces: list[Trace] = []
    with progress_bar("improving", len(items)) if len(items) > 1 else nullcontext() as advance:
        for start in range(0, len(items), CHUNK):
            chunk = slice(start, start + CHUNK)
            traces += improve_many(
                [item.prompt for item in items[chunk]],
                answered[chunk],
                improver=writer,
                gap=scorer,
                seed=seed,
                advance=advance,
                **settings.model_dump(),
            )
    console = make_console()
    if output is not None:
        write_traces(output, items, traces)
        _print_summary(console, traces, output)
    else:
        _print_trace(console, traces[0])
    return traces


def _check_lengths(writer: Improver, items: Sequence[Item]) -> None:
    for item in items:
        try:
            writer.check(item.prompt, item.response or "")
        except InputError as error:
            raise InputError(f"{item.where}: {error}") from error


def _with_responses(items: Sequence[Item], run: Path | None, recipe: Recipe | None, seed: int) -> list[str]:
    """Each item's response; the run's policy answers where there is none."""
    missing = [item for item in items if item.response is None]
    if not missing:
        return [item.response or "" for item in items]
    if run is None or recipe is None:
        raise InputError(f"{missing[0].where}: found no response, expected one, or --run, whose policy then answers")
    policy = Policy.from_pretrained(run / policy_stage(recipe) / "model")
    temperature = recipe.evaluation.policy_temperature
    made = iter(policy.answer([item.prompt for item in missing], temperature=temperature, seed=seed))
    return [item.response if item.response is not None else next(made).text for item in items]


def _print_trace(console: Console, trace: Trace) -> None:
    console.print(Text(f"original  {trace.original}"))
    for number, step in enumerate(trace.rounds, 1):
        decision = "accepted" if step.accepted else "rejected"
        console.print(Text(f"round {number}   {step.proposal}   (gap {step.gap:+.2f}, {decision})"))
    console.print(Text(f"final     {trace.final}"))
    console.print(Text(f"stopped: {trace.stop_reason}; {trace.generated_tokens} tokens generated"))


def _print_summary(console: Console, traces: Sequence[Trace], output: Path) -> None:
    changed = sum(trace.final != trace.original for trace in traces)
    reasons = Counter(str(trace.stop_reason) for trace in traces)
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    console.print(Text(f"{len(traces)} answers, {changed} changed. Stopped: {listed}. Written to {output}"))
