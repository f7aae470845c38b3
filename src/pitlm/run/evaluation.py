"""The last stages of a run: every system on the held-out prompts, judged, and the report."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pitlm.core.nouns import Answer, Improvement, Preference, Prompt, Trace
from pitlm.data.folds import unique_prompts
from pitlm.evaluate.compare import ORIGINAL, difference, judge_systems, summarise
from pitlm.evaluate.gap_health import share
from pitlm.evaluate.statistics import mean_interval
from pitlm.io.atomic import write_text
from pitlm.io.console import progress_bar
from pitlm.judge.scores import ScoreJudge
from pitlm.loop.baselines.baseline import PIT, PIT_ONE, SFT, Baseline, chosen_baselines
from pitlm.loop.chains import incumbents
from pitlm.loop.systems import Systems, TrainedModels, answer_of, comparisons
from pitlm.models.generators import Improver, Policy
from pitlm.models.scorers import GapModel, RewardModel
from pitlm.run.context import Context


def evaluate(context: Context, folder: Path, policy: str, improver: str) -> dict[str, Any]:
    """Answer, judge and summarise; the answers, rows and traces are kept beside the result."""
    section, bases = context.recipe.evaluation, context.bases()
    models = TrainedModels(
        policy=Policy.from_pretrained(context.model(policy), bases=bases),
        improver=Improver.from_pretrained(context.model(improver), bases=bases),
        corrector=Improver.from_pretrained(context.model("improver-sft"), bases=bases),
        gap=GapModel.from_pretrained(context.model("gap"), bases=bases),
        reward=RewardModel.from_pretrained(context.model("reward"), bases=bases),
        policy_before=Policy.from_pretrained(context.model("policy-sft"), bases=bases)
        if context.recipe.policy_rl
        else None,
    )
    for model in filter(None, (models.policy, models.improver, models.corrector, models.policy_before)):
        model.batch_size = section.batch_size
    prompts = unique_prompts(context.folds["test"])[: section.items]
    temperature = section.policy_temperature
    with progress_bar("original answers", len(prompts)) as advance:
        seed = context.seed("original")
        originals = models.policy.answer(prompts, temperature=temperature, seed=seed, advance=advance)
    systems = Systems(prompts, originals, models, context.recipe.loop, temperature, context.seed, section.tokens)
    result = _judge(context, folder, systems, chosen_baselines(context.recipe), context.judge(bases))
    wanted, samples = systems.samples
    return {**result, "best_of_samples": samples, "best_of_tokens_wanted": wanted}


def _judge(
    context: Context, folder: Path, systems: Systems, baselines: Sequence[Baseline], judge: ScoreJudge
) -> dict[str, Any]:
    resamples = context.recipe.evaluation.resamples
    prompts, y0 = systems.prompts, systems.y0
    traces = systems.traces(baselines)
    answers = {
        ORIGINAL: [Answer(text) for text in y0],
        **{name: [answer_of(trace) for trace in own] for name, own in traces.items()},
    }
    rows, scores = judge_systems(prompts, answers, judge)
    count = context.tokenizer
    lengths = {name: [len(count.encode(a.text)) for a in given] for name, given in answers.items()}
    lines = summarise(rows, answers, scores, lengths, resamples=resamples)
    _write_rows(folder, prompts, answers, scores, traces[PIT])
    return {
        "judge": judge.name,
        "judge_accuracy": judge_accuracy(judge, context.folds["test"]),
        "items": len(prompts),
        "tokens": systems.tokens,
        "systems": [asdict(line) for line in lines],
        "differences": [
            {"first": a, "second": b, "interval": asdict(difference(rows, a, b, resamples=resamples))}
            for a, b in comparisons(baselines)
        ],
        "quality_by_round": {
            name: [
                asdict(mean_interval(judge.score(prompts, list(texts)), resamples=resamples))
                for texts in zip(*map(incumbents, chain), strict=True)
            ]
            for name, chain in systems.chains.items()
        },
        "gaps": {name: _gaps(systems, answers[name]) for name in (SFT, PIT_ONE, PIT) if name in answers},
        "stop_reasons": dict(sorted(Counter(str(trace.stop_reason) for trace in traces[PIT]).items())),
        "made_worse": sum(b < a for a, b in zip(scores[ORIGINAL], scores[PIT], strict=True)) / max(1, len(prompts)),
    }


def _gaps(systems: Systems, answers: Sequence[Answer]) -> list[float]:
    items = [Improvement(x, y0, y.text) for x, y0, y in zip(systems.prompts, systems.y0, answers, strict=True)]
    return [round(value, 4) for value in systems.models.gap.gaps(items).tolist()]


def judge_accuracy(judge: ScoreJudge, pairs: Sequence[Preference]) -> dict[str, float]:
    """How often the judge agrees with held-out labels: what its verdicts are worth. Equal scores are left out."""
    prompts = [pair.prompt for pair in pairs]
    chosen = judge.score(prompts, [pair.chosen for pair in pairs])
    rejected = judge.score(prompts, [pair.rejected for pair in pairs])
    return share([w > l for w, l in zip(chosen, rejected, strict=True) if w != l])


def _write_rows(
    folder: Path,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[Answer]],
    scores: Mapping[str, Sequence[float]],
    traces: Sequence[Trace],
) -> None:
    items = [
        {
            "item": f"{index:05d}",
            "prompt": prompt.as_messages(),
            "answers": {name: given[index].text for name, given in answers.items()},
            "scores": {name: _finite(own[index]) for name, own in scores.items()},
        }
        for index, prompt in enumerate(prompts)
    ]
    for name, rows in (("items.jsonl", items), ("traces.jsonl", [trace.as_dict() for trace in traces])):
        write_text(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
