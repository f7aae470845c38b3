"""The last stages of a run: every system on the held-out prompts, judged, and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pitlm.core.nouns import Answer, Improvement, Preference, Prompt, Trace
from pitlm.evaluate.compare import ORIGINAL, difference, judge_systems, summarise
from pitlm.evaluate.health import share
from pitlm.evaluate.statistics import mean_interval
from pitlm.improve.baselines import best_of
from pitlm.improve.loop import improve_many
from pitlm.judge.scores import ScoreJudge
from pitlm.models.generators import Improver, Policy
from pitlm.models.scorers import GapModel, RewardModel
from pitlm.pipeline.context import Context
from pitlm.pipeline.training import unique_prompts
from pitlm.runs.atomic import write_text
from pitlm.runs.console import progress_bar

PIT = "PIT"
PIT_ONE = "PIT, 1 round, no stop rule"
SFT = "SFT-only improver"
SFT_LOOP = "SFT-only improver + loop"
BEST_OF = "best-of-N with R_P"
ROUNDS = 3
"""Rounds without stop rule that quality by round is measured over."""


class Answers:
    """Samples every system's answers once."""

    def __init__(self, context: Context, policy: str, improver: str) -> None:
        self.context = context
        self.loop = context.recipe.loop
        self.batch = context.recipe.evaluation.batch_size
        self.dtype = context.recipe.model.dtype
        self.policy = Policy.from_pretrained(context.model(policy), self.dtype)
        self.improvers = {
            PIT: Improver.from_pretrained(context.model(improver), self.dtype),
            SFT: Improver.from_pretrained(context.model("improver-sft"), self.dtype),
        }
        self.gap = GapModel.from_pretrained(context.model("gap"), self.dtype)
        self.reward = RewardModel.from_pretrained(context.model("reward"), self.dtype)
        self.prompts = unique_prompts(context.folds["test"])[: context.recipe.evaluation.items]

    def originals(self) -> list[Answer]:
        with progress_bar("original answers", len(self.prompts)) as advance:
            return self.policy.answer(
                self.prompts,
                temperature=self.context.recipe.evaluation.policy_temperature,
                seed=self.context.seed("original"),
                batch_size=self.batch,
                advance=advance,
            )

    def rounds(self, name: str, originals: Sequence[str]) -> list[list[Answer]]:
        """The improver applied again and again, whatever R_PIT says; one list of answers a round."""
        chain: list[list[Answer]] = []
        references = list(originals)
        with progress_bar(f"{name}, {ROUNDS} rounds", ROUNDS * len(references)) as advance:
            for number in range(ROUNDS):
                chain.append(
                    self.improvers[name].propose(
                        self.prompts,
                        references,
                        temperature=self.loop.temperature,
                        seed=self.context.seed(f"rounds-{number}"),
                        batch_size=self.batch,
                        advance=advance,
                    )
                )
                references = [answer.text for answer in chain[-1]]
        return chain

    def traces(self, name: str, originals: Sequence[str]) -> list[Trace]:
        with progress_bar(f"{name}, loop", len(self.prompts)) as advance:
            return improve_many(
                self.prompts,
                originals,
                improver=self.improvers[name],
                gap=self.gap,
                seed=self.context.seed("loop"),
                advance=advance,
                **self.loop.model_dump(),
            )

    def best_of(self, originals: Sequence[str], samples: int) -> list[Answer]:
        with progress_bar(f"{BEST_OF}, N = {samples} + 1", samples * len(originals)) as advance:
            return best_of(
                self.prompts,
                originals,
                policy=self.policy,
                reward=self.reward,
                samples=samples,
                temperature=self.context.recipe.evaluation.policy_temperature,
                seed=self.context.seed("best-of"),
                advance=advance,
            )

    def gaps(self, originals: Sequence[str], texts: Sequence[str]) -> list[float]:
        items = [Improvement(x, y0, y) for x, y0, y in zip(self.prompts, originals, texts, strict=True)]
        gaps: list[float] = self.gap.gaps(items).tolist()
        return gaps


def evaluate(context: Context, folder: Path, policy: str, improver: str) -> dict[str, Any]:
    """Answer, judge and summarise; the answers, rows and traces are kept beside the result."""
    makers = Answers(context, policy, improver)
    start = makers.originals()
    y0 = [answer.text for answer in start]
    chains = {name: makers.rounds(name, y0) for name in (SFT, PIT)}
    traces = {name: makers.traces(name, y0) for name in (SFT, PIT)}
    spent = sum(trace.generated_tokens for trace in traces[PIT]) / max(1, sum(a.generated_tokens for a in start))
    samples = max(1, round(spent))
    best = makers.best_of(y0, samples)
    answers: dict[str, list[Answer]] = {
        ORIGINAL: [Answer(text) for text in y0],
        BEST_OF: best,
        SFT: chains[SFT][0],
        SFT_LOOP: [_final(trace) for trace in traces[SFT]],
        PIT_ONE: chains[PIT][0],
        PIT: [_final(trace) for trace in traces[PIT]],
    }
    result = _judge(context, folder, makers, answers, chains, traces[PIT])
    return {**result, "best_of_samples": samples, "best_of_tokens_wanted": spent}


def _final(trace: Trace) -> Answer:
    return Answer(trace.final, trace.generated_tokens, trace.prompt_tokens)


def _judge(
    context: Context,
    folder: Path,
    makers: Answers,
    answers: Mapping[str, list[Answer]],
    chains: Mapping[str, list[list[Answer]]],
    traces: Sequence[Trace],
) -> dict[str, Any]:
    resamples = context.recipe.evaluation.resamples
    judge = context.judge()
    prompts = makers.prompts
    rows, scores = judge_systems(prompts, answers, judge)
    count = context.tokenizer
    lengths = {name: [len(count.encode(a.text)) for a in given] for name, given in answers.items()}
    systems = summarise(rows, answers, scores, lengths, resamples=resamples)
    y0 = [answer.text for answer in answers[ORIGINAL]]
    _write_rows(folder, prompts, answers, scores, traces)
    return {
        "judge": judge.name,
        "judge_accuracy": judge_accuracy(judge, context.folds["test"]),
        "items": len(prompts),
        "systems": [asdict(system) for system in systems],
        "differences": [
            {"first": PIT, "second": other, "interval": asdict(difference(rows, PIT, other, resamples=resamples))}
            for other in (SFT, SFT_LOOP, BEST_OF, PIT_ONE)
        ]
        + [{"first": PIT_ONE, "second": SFT, "interval": asdict(difference(rows, PIT_ONE, SFT, resamples=resamples))}],
        "quality_by_round": {
            name: [
                asdict(mean_interval(judge.score(prompts, texts), resamples=resamples))
                for texts in (y0, *([a.text for a in given] for given in chain))
            ]
            for name, chain in chains.items()
        },
        "gaps": {
            name: [round(value, 4) for value in makers.gaps(y0, [answer.text for answer in answers[name]])]
            for name in (SFT, PIT_ONE, PIT)
        },
        "stop_reasons": {
            reason: sum(trace.stop_reason == reason for trace in traces)
            for reason in sorted({str(trace.stop_reason) for trace in traces})
        },
        "made_worse": sum(b < a for a, b in zip(scores[ORIGINAL], scores[PIT], strict=True)) / max(1, len(prompts)),
    }


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
