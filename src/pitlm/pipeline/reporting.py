"""From the results of a run's stages to its report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pitlm.core.nouns import Trace
from pitlm.core.verdicts import Verdict
from pitlm.evaluate.statistics import Interval, Tally
from pitlm.improve.systems import PIT
from pitlm.pipeline.context import Context
from pitlm.report.data import (
    HEALTH_KEYS,
    Curve,
    DifferenceLine,
    Example,
    HealthLine,
    Report,
    RoundQuality,
    SystemLine,
    health_line,
)
from pitlm.report.html import write
from pitlm.runs.stage import stage_result
from pitlm.text.dataset import reading
from pitlm.train.logs import read_metrics
from pitlm.train.probe import probe_file

EXAMPLES = 400


def report(context: Context, folder: Path, stages: Sequence[str]) -> dict[str, Any]:
    """Write ``report.html`` at the root of the run."""
    del folder  # the report is what people look for: it lies at the top
    path = context.root / "report.html"
    evaluation = stage_result(context.root, "evaluation")
    health, data = stage_result(context.root, "gap")["health"], stage_result(context.root, "data")
    write(
        Report(
            title=f"pitlm: {context.recipe.name}",
            settings=_settings(context, evaluation),
            headline=headline(evaluation, health),
            systems=system_lines(evaluation),
            differences=difference_lines(evaluation),
            curves=[_curve(context.root, name, evaluation["judge"]) for name in stages if name.startswith("rl-")],
            quality_by_round=RoundQuality(
                evaluation["judge"],
                {name: [Interval(**i) for i in chain] for name, chain in evaluation["quality_by_round"].items()},
            ),
            gaps=evaluation["gaps"],
            health=health_lines(health),
            examples=_examples(context.root, evaluation["gaps"][PIT]),
            notes=[*trends(context.root, stages), f"{data_line(data)}.", *notes(context, evaluation)],
            quality_name=evaluation["judge"],
        ),
        path,
    )
    return {"path": path.name}


def headline(evaluation: dict[str, Any], health: dict[str, Any]) -> list[str]:
    """What a run found, in sentences that a newcomer can read."""
    system = next(line for line in evaluation["systems"] if line["name"] == PIT)
    against = evaluation["differences"][0]
    fresh, judge = health["fresh_pairs"], evaluation["judge_accuracy"]
    gain = against["interval"]
    sign = "a difference" if Interval(**gain).excludes_zero else "no clear difference"
    return [
        f"PIT against the original answer: Delta {_points(system['delta'])} points over {evaluation['items']} held-out "
        f"prompts, judged by {evaluation['judge']}.",
        f"Delta of PIT minus Delta of the {against['second']}: {_points(gain)} points ({sign} at 95%).",
        f"The judge ({evaluation['judge']}) agrees with {_percent(judge)} of {judge['n']} held-out labels; "
        "chance is 50%.",
        f"R_PIT picks the better of two fresh policy answers in {_percent(fresh)} of {fresh['n']} pairs; "
        "chance is 50%.",
    ]


def _points(interval: dict[str, float]) -> str:
    return f"{100 * interval['estimate']:+.1f} [{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def _percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['estimate']:.1f}% [{100 * interval['low']:.1f}%, {100 * interval['high']:.1f}%]"


def health_lines(health: dict[str, Any]) -> list[HealthLine]:
    """The figures of R_PIT in the order in which a reader should meet them."""
    lines = []
    for key in HEALTH_KEYS:
        value = health["order"][key] if key in health["order"] else health[key]
        if isinstance(value, dict):
            lines.append(health_line(key, value["estimate"], Interval(value["estimate"], value["low"], value["high"])))
        else:
            lines.append(health_line(key, value))
    return lines


def trends(root: Path, stages: Sequence[str]) -> list[str]:
    """One sentence per RL stage: whether quality held to the end. Folders of stages that are no more are left alone."""
    sentences = []
    for name in (name for name in stages if name.startswith("rl-")):
        trend = stage_result(root, name)["trend"]
        change = trend["change"]
        verdict = "it fell while the reward was maximised" if change["high"] < 0 else "no fall"
        sentences.append(
            f"{name}: quality on held-out prompts {trend['first']:.2f} before, {trend['last']:.2f} after; "
            f"step {trend['last_step']} less step {trend['late_step']}: {change['estimate']:+.3f} "
            f"[{change['low']:+.3f}, {change['high']:+.3f}], {verdict}."
        )
    return sentences


def data_line(result: dict[str, Any]) -> str:
    """What became of the rows of the data, down to the pairs that are used."""
    line = reading(result["read"], result["kept"], result["dropped"], result["invalid"])
    line += " (set aside in data/rejects.jsonl)" if result["invalid"] else ""
    over_long = result["over_long"]
    parts = [f"{over_long['dropped']:,} over-long pairs dropped"] if over_long["dropped"] else []
    parts += [f"{over_long['trimmed']:,} prompts trimmed"] if over_long["trimmed"] else []
    return "; ".join([line, *parts])


def _settings(context: Context, evaluation: dict[str, Any]) -> dict[str, str]:
    recipe = context.recipe
    data = stage_result(context.root, "data")
    base = recipe.model.base or "from scratch"
    return {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "data": f"{recipe.data.source}: {sum(fold['pairs'] for fold in data['folds'].values())} pairs",
        "start model": base,
        "training": "LoRA" if recipe.peft else "full",
        "curriculum": ", ".join(recipe.curriculum.stages),
        "judge": evaluation["judge"],
        "held-out prompts": str(evaluation["items"]),
        "improver temperature": f"{recipe.loop.temperature:g}",
        "policy temperature": f"{recipe.evaluation.policy_temperature:g}",
    }


def system_lines(evaluation: dict[str, Any]) -> list[SystemLine]:
    """Each system against the original answers."""
    return [_system(line, evaluation) for line in evaluation["systems"]]


def difference_lines(evaluation: dict[str, Any]) -> list[DifferenceLine]:
    """One system against another."""
    return [
        DifferenceLine(line["first"], line["second"], Interval(**line["interval"]))
        for line in evaluation["differences"]
    ]


def _system(line: dict[str, Any], evaluation: dict[str, Any]) -> SystemLine:
    original = line["name"] == "original"
    base = next(other for other in evaluation["systems"] if other["name"] == "original")
    base_length = base["answer_tokens"]
    return SystemLine(
        name=line["name"],
        items=evaluation["items"],
        tally=None if original else Tally(**line["tally"]),
        delta=None if original else Interval(**line["delta"]),
        win_rate=None if original else Interval(**line["win_rate"]),
        quality=Interval(**line["quality"]),
        copy_rate=None if original else line["copy_rate"],
        length_change_tokens=None if original else line["answer_tokens"] - base_length,
        length_change_share=None if original or not base_length else line["answer_tokens"] / base_length - 1,
        generated_tokens=line["generated_tokens"],
        gain_per_100_tokens=Interval(**line["gain_per_100_tokens"]) if line["gain_per_100_tokens"] else None,
    )


def _curve(root: Path, stage: str, judge: str) -> Curve:
    rows = {row["step"]: row for row in read_metrics(root / stage / "metrics.jsonl") if "reward" in row}
    # The judge's mean over the samples of a step moves with the prompts that they answer; held-out ones stay the same.
    held_out = {row["step"]: float(np.mean(row["quality"])) for row in read_metrics(probe_file(root / stage))}
    steps = sorted({*rows, *held_out})
    return Curve(
        stage,
        steps,
        [rows.get(step, {}).get("reward") for step in steps],
        [rows.get(step, {}).get("kl_sequence") for step in steps],
        [held_out.get(step) for step in steps],
        f"{judge} on held-out prompts",
    )


def _examples(root: Path, gaps: Sequence[float]) -> list[Example]:
    folder = root / "evaluation"
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    traces = [json.loads(line) for line in (folder / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    examples = []
    for item, trace, gap in list(zip(items, traces, gaps, strict=True))[:EXAMPLES]:
        scores = (item["scores"][PIT], item["scores"]["original"])
        examples.append(Example(Trace.from_dict(trace), gap, _verdict(scores), None if None in scores else scores, PIT))
    return examples


def _verdict(scores: tuple[float | None, float | None]) -> Verdict | None:
    mine, theirs = scores
    if mine is None or theirs is None:
        return None
    if math.isclose(mine, theirs, abs_tol=1e-6):
        return Verdict.TIE
    return Verdict.WIN if mine > theirs else Verdict.LOSS


def notes(context: Context, evaluation: dict[str, Any]) -> list[str]:
    """How to read the results, one paragraph each."""
    stops = ", ".join(f"{reason}: {count}" for reason, count in evaluation["stop_reasons"].items())
    found = [
        f"The loop stopped for these reasons: {stops}. "
        f"It made {100 * evaluation['made_worse']:.1f}% of the answers worse.",
        f"Every system was held to {evaluation['tokens']} generated tokens per item; what went beyond them was cut off."
        if evaluation["tokens"]
        else f"Best-of-N had {evaluation['best_of_samples']} further samples per prompt, the whole number nearest to "
        f"{evaluation['best_of_tokens_wanted']:.2f}, where it generates as many tokens as PIT's loop.",
    ]
    if not context.pocket:
        found.append(
            "There is no ground truth here: the judge is a reward model trained on pairs that neither R_P nor R_PIT "
            "has seen. It is right as often as its own held-out accuracy says, and 50% is chance."
        )
    return found
