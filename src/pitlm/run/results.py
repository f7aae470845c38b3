"""The results of a run, read from its folder: one summary of its verdicts, and one report for all who show it.

This module imports nothing that trains, because such an import takes seconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pitlm.core.errors import InputError, loading
from pitlm.core.nouns import Trace
from pitlm.core.recipe import Recipe
from pitlm.data.dataset import reading
from pitlm.evaluate.answer_figures import AnswerFigures, answer_figures
from pitlm.evaluate.statistics import Interval
from pitlm.evaluate.summary import summarise
from pitlm.evaluate.verdict_files import Annotation, read_verdicts
from pitlm.io.atomic import read_json_lines
from pitlm.io.templates import template
from pitlm.judge.scores import HELD_OUT, TRUTH
from pitlm.loop.baselines.baseline import PIT
from pitlm.report.shape import BeforeAfter, Points, Report, health_figures, share_interval
from pitlm.report.terminal import points
from pitlm.run.folder import Status, is_current, stage_record, stage_result, stored_recipe

EXAMPLES = 400
"""The number of examples in a report, each an answer before and after."""


def run_verdicts(root: Path) -> tuple[Path, dict[str, AnswerFigures]]:
    """The file of a run's verdicts, and the figures of each system's answers.

    Raises:
        InputError: the folder holds no run, or a run without evaluation.
    """
    stored_recipe(root)
    stage_result(root, "evaluation")
    items = root / "evaluation" / "items.jsonl"
    with loading(items, "list of answers"):
        return items.with_name("verdicts.jsonl"), answer_figures(read_json_lines(items))


def read_sources(sources: Sequence[Path]) -> tuple[list[Annotation], dict[str, AnswerFigures] | None]:
    """The verdicts of files and of at most one run, and the figures of the answers in that run.

    Raises:
        InputError: a second run, a run without evaluation, or a file that holds no verdicts.
    """
    files, known = list(sources), None
    runs = [index for index, source in enumerate(sources) if source.is_dir()]
    if len(runs) > 1:
        raise InputError.at(sources[runs[1]], found="a second run", expected="one; each run has its own items")
    for index in runs:
        files[index], known = run_verdicts(sources[index])
    return read_verdicts(files), known


def run_report(root: Path, recipe: Recipe) -> Report:
    """The measurements of a run so far, of the models that its folder holds now.

    Raises:
        InputError: a file of the run is not as pitlm wrote it.
    """
    with loading(root, "finished run"):
        return _run_report(root, recipe)


def _run_report(root: Path, recipe: Recipe) -> Report:
    record = stage_record(root, "gap")
    gap = record["result"]["health"] if record and record["status"] == Status.DONE else None
    title, health = f"pitlm: {recipe.name}", health_figures(gap) if gap else {}
    if gap is None or not is_current(root, "evaluation"):
        return Report(title, health=health)
    result, data = stage_result(root, "evaluation"), stage_result(root, "data")
    verdicts, known = run_verdicts(root)
    rows = [annotation.row for annotation in read_verdicts([verdicts])]
    summary = summarise(rows, answered=known, rank=None, resamples=recipe.evaluation.resamples)
    judge, compared = next(iter(result["judges"])), [(first, second) for first, second in result["compared"]]
    pit = next(line for line in summary.by(judge) if line.system == PIT)
    traces = read_json_lines(verdicts.with_name("traces.jsonl"), Trace.from_dict)
    changed = zip(traces, result["gaps"][PIT], (r for r in rows if (r.first, r.judge) == (PIT, judge)), strict=True)
    stages = [stage.name for stage in recipe.curriculum.stage_list]
    rivals, reasons = summary.compared(judge, compared[:1]), Counter(str(trace.stop_reason) for trace in traces)
    stops = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
    judges, world = recipe.evaluation.judges, recipe.data.world
    by_reward = not world and (not judges or judges[0].kind == "reward")
    return Report(
        title,
        settings=_settings(recipe, data, ", ".join(result["judges"]), summary.items),
        headline=_said("headline", pit, summary.items, judge, rivals, result["judges"], gap),
        summary=summary,
        judges={name: share_interval(found) for name, found in result["judges"].items()},
        compared=compared,
        curves={stage: read_curve(root / stage, TRUTH if world else HELD_OUT) for stage in stages},
        quality_by_round={
            judge: {name: [Interval(*i) for i in rounds] for name, rounds in systems.items()}
            for judge, systems in result["quality_by_round"].items()
        },
        gaps=result["gaps"],
        health=health,
        examples=[BeforeAfter(*example) for example in changed][:EXAMPLES],
        trends=_said("trends", {stage: stage_result(root, stage)["trend"] for stage in stages}),
        notes=_said("notes", result, data["folds"]["test"]["pairs"], stops, pit, by_reward),
    )


def _settings(recipe: Recipe, data: Mapping[str, Any], judges: str, items: int) -> dict[str, str]:
    return {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "data": f"{recipe.data.source}: {sum(fold['pairs'] for fold in data['folds'].values())} pairs",
        "rows": data_line(data),
        "start model": recipe.model.base or "from scratch",
        "training": "LoRA" if recipe.peft else "full",
        "curriculum": ", ".join(recipe.curriculum.stages),
        "judge": judges,
        "held-out prompts": str(items),
        "improver temperature": f"{recipe.loop.temperature:g}",
        "policy temperature": f"{recipe.evaluation.policy_temperature:g}",
    }


def read_curve(folder: Path, judge: str) -> dict[str, Points]:
    """The figures of one RL stage by name, from its folder."""
    rows = read_json_lines(folder / "metrics.jsonl")

    def logged(name: str) -> Points:
        """A figure by step, without the steps that have none: KL is not logged if beta is 0."""
        return [(row["step"], row[name]) for row in rows if row.get(name) is not None]

    # The mean quality of a step's samples varies with the prompts of the step. Held-out prompts are always the same.
    held_out = [(row["step"], float(np.mean(row["quality"]))) for row in read_json_lines(folder / "probe.jsonl")]
    return {
        "reward": logged("reward"),
        f"{judge} on held-out prompts": held_out,
        "KL to the SFT improver (nats per sequence)": logged("kl_sequence"),
    }


def data_line(result: Mapping[str, Any]) -> str:
    """One line about the rows of the data, from those that were read to the pairs that are used."""
    line = reading(result["read"], result["kept"], result["dropped"], result["invalid"])
    line += " (set aside in data/rejects.jsonl)" if result["invalid"] else ""
    over_long = result["over_long"]
    parts = [f"{over_long['dropped']:,} over-long pairs dropped"] if over_long["dropped"] else []
    parts += [f"{over_long['trimmed']:,} prompts trimmed"] if over_long["trimmed"] else []
    refused = result.get("refused", 0)
    parts += [f"{refused:,} pairs left out that the chat template refuses"] if refused else []
    return "; ".join([line, *parts])


def _said(part: str, *about: Any) -> list[str]:
    """The sentences of a part of the report."""
    words = template("pitlm.report", "findings.j2", {"points": points, "percent": _percent, "interval": share_interval})
    return str(getattr(words.module, part)(*about)).splitlines()


def _percent(share: Mapping[str, float]) -> str:
    """A share with its interval and its number of items."""
    estimate, low, high = (f"{100 * share[name]:.1f}%" for name in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}] of {share['n']}"
