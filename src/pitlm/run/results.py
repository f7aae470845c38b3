"""The results of a run's stages in tables and sentences, for the terminal, the report and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pitlm.data.dataset import reading
from pitlm.evaluate.statistics import Interval, Tally
from pitlm.loop.baselines.baseline import PIT
from pitlm.report.shape import HEALTH_KEYS, DifferenceLine, HealthLine, SystemLine, health_line
from pitlm.run.folder import stage_result


def headline(evaluation: dict[str, Any], health: dict[str, Any]) -> list[str]:
    """What a run found, in sentences that a newcomer can read."""
    system = next(line for line in evaluation["systems"] if line["name"] == PIT)
    fresh, judge = health["fresh_pairs"], evaluation["judge_accuracy"]
    rival = []
    for line in evaluation["differences"][:1]:
        gain = line["interval"]
        sign = "a difference" if Interval(**gain).excludes_zero else "no clear difference"
        rival = [f"Delta of PIT minus Delta of the {line['second']}: {_points(gain)} points ({sign} at 95%)."]
    return [
        f"PIT against the original answer: Delta {_points(system['delta'])} points over {evaluation['items']} held-out "
        f"prompts, judged by {evaluation['judge']}.",
        *rival,
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


def notes(evaluation: dict[str, Any], *, pocket: bool) -> list[str]:
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
    if not pocket:
        found.append(
            "There is no ground truth here: the judge is a reward model trained on pairs that neither R_P nor R_PIT "
            "has seen. It is right as often as its own held-out accuracy says, and 50% is chance."
        )
    return found
