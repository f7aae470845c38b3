"""The training stages of a run, each reading folders and writing one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pitlm.core.nouns import Preference, Prompt
from pitlm.core.recipe import RLSection
from pitlm.evaluate.gap_health import FreshPair, gap_health
from pitlm.evaluate.statistics import mean_interval
from pitlm.io.atomic import write_text
from pitlm.io.console import progress_bar
from pitlm.judge.scores import ScoreJudge
from pitlm.method.logs import read_metrics
from pitlm.method.probe import Conversation, Probe, probe_file
from pitlm.method.reward import train_gap, train_reward
from pitlm.method.rl import Reward, train_rl
from pitlm.method.sft import train_sft
from pitlm.method.token_rows import gap_rows, improver_rows, policy_rows, reward_rows
from pitlm.models.generators import Improver, Policy
from pitlm.models.scorers import GapModel, RewardDifference, RewardModel
from pitlm.run.context import Context

T = TypeVar("T")


def policy_sft(context: Context, folder: Path) -> dict[str, Any]:
    section = context.recipe.policy_sft
    rows = policy_rows(context.folds["sft"], context.tokenizer, context.template)
    held_out = policy_rows(context.folds["validation"][: section.eval_rows], context.tokenizer, context.template)
    bench = context.bench(folder, context.start, "policy")
    metrics = context.train(folder, lambda: train_sft(rows, held_out, section, bench, "policy SFT"))
    return {"pairs": len(rows), **metrics}


def improver_sft(context: Context, folder: Path) -> dict[str, Any]:
    section = context.recipe.improver_sft
    rows = improver_rows(context.folds["sft"], context.tokenizer, context.template)
    held_out = improver_rows(context.folds["validation"][: section.eval_rows], context.tokenizer, context.template)
    start = context.model("policy-sft") if context.recipe.model.improver_start == "policy" else context.start
    bench = context.bench(folder, start, "improver")
    metrics = context.train(folder, lambda: train_sft(rows, held_out, section, bench, "improver SFT"))
    return {"pairs": len(rows), **metrics}


def reward_model(context: Context, folder: Path, folds: Sequence[str]) -> dict[str, Any]:
    """R_P on the reward fold; or the judge, on folds that no other reward model sees."""
    section = context.recipe.reward
    pairs = [pair for fold in folds for pair in context.folds[fold]]
    rows = reward_rows(pairs, context.tokenizer, context.template)
    held_out = reward_rows(context.folds["validation"][: section.eval_rows], context.tokenizer, context.template)
    start = context.recipe.model.reward_base or context.model("policy-sft")
    bench = context.bench(folder, start, "reward")
    return {"pairs": len(rows), **context.train(folder, lambda: train_reward(rows, held_out, section, bench))}


def gap_model(context: Context, folder: Path, policy: str) -> dict[str, Any]:
    """R_PIT on the reward fold, and its health on held-out pairs and on fresh answers of the policy."""
    section = context.recipe.gap
    rows = gap_rows(context.folds["reward"], context.tokenizer, context.template)
    held_out = gap_rows(context.folds["validation"][: section.eval_rows], context.tokenizer, context.template)
    start = context.recipe.model.reward_base or context.model("improver-sft")
    bench = context.bench(folder, start, "gap")
    metrics = context.train(folder, lambda: train_gap(rows, held_out, section, bench))
    return {"pairs": len(rows), **metrics, "health": _health(context, folder, policy)}


def _health(context: Context, folder: Path, policy: str) -> dict[str, Any]:
    evaluation = context.recipe.evaluation
    prompts = unique_prompts(context.folds["test"])[: evaluation.fresh_pairs]
    bases = context.bases()
    writer = Policy.from_pretrained(context.model(policy), bases=bases)
    with progress_bar("fresh answers", 2 * len(prompts)) as advance:
        first, second = (
            writer.answer(
                prompts,
                temperature=evaluation.policy_temperature,
                seed=context.seed(f"fresh-{number}"),
                batch_size=evaluation.batch_size,
                advance=advance,
            )
            for number in (1, 2)
        )
    fresh = [FreshPair(x, a.text, b.text) for x, a, b in zip(prompts, first, second, strict=True)]
    return gap_health(
        GapModel.from_pretrained(folder / "model", bases=bases),
        RewardModel.from_pretrained(context.model("reward"), bases=bases),
        context.folds["test"],
        fresh,
        context.judge(bases).score,
    )


def policy_rl(context: Context, folder: Path) -> dict[str, Any]:
    """Ordinary RLHF of the policy on R_P, where the recipe asks for it: M_P^RL."""
    section = context.recipe.policy_rl
    assert section is not None
    rng = random.Random(context.seed("policy-rl"))
    prompts = _take(rng, unique_prompts(context.folds["rl"]), section)
    conversations = [context.template.policy_messages(prompt) for prompt in prompts]
    anchor = context.model("policy-sft")

    def train() -> dict[str, float]:
        bases = context.bases()
        reward = RewardModel.from_pretrained(context.model("reward"), bases=bases)
        held_out = [context.template.policy_messages(x) for x in _held_out(context, section)]
        return train_rl(
            conversations,
            reward.score_rows,
            section,
            context.bench(folder, anchor, "policy"),
            title="policy RL",
            anchor=anchor,
            probe=_probe(context.judge(bases), held_out, lambda conversation: Prompt.of(conversation)),
        )

    context.train(folder, train)
    return {"prompts": len(prompts), "trend": quality_trend(read_metrics(probe_file(folder)))}


def curriculum_stage(context: Context, folder: Path, number: int, previous: str | None, policy: str) -> dict[str, Any]:
    """One stage of curriculum RL (Eq. 4 or 5): references sampled once by a frozen source, then RLOO on them."""
    curriculum = context.recipe.curriculum
    section = curriculum.rl
    if curriculum.steps is not None:
        section = section.model_copy(update={"max_steps": curriculum.steps[number]})
    rows = _references(context, folder, number, previous, policy, section)
    context.train(folder, lambda: _train_curriculum(context, folder, rows, number, previous, policy, section))
    trend = quality_trend(read_metrics(probe_file(folder)))
    return {"references": len(rows), "source": curriculum.stages[number], "trend": trend}


def _train_curriculum(
    context: Context,
    folder: Path,
    rows: Sequence[tuple[Prompt, str]],
    number: int,
    previous: str | None,
    policy: str,
    section: RLSection,
) -> dict[str, float]:
    curriculum = context.recipe.curriculum
    anchor = context.model("improver-sft")
    lora, bases = context.recipe.peft is not None, context.bases()
    # With LoRA the weights under the adapter stay the anchor's, and the adapter of the stage before goes on.
    # So reward model, judge and policy share the run's base, but not with what is trained: that sits on merged weights.
    start = context.model(previous) if previous and not lora else anchor
    if curriculum.reward == "gap":
        reward: Reward = GapModel.from_pretrained(context.model("gap"), bases=bases).score_rows
    else:
        judge = RewardModel.from_pretrained(context.model("reward"), bases=bases)
        reward = RewardDifference(judge).row_reward(rows)
    writer = Policy.from_pretrained(context.model(policy), bases=bases)
    prompts = _held_out(context, section)
    temperature = context.recipe.evaluation.policy_temperature
    answers = writer.answer(prompts, temperature=temperature, seed=context.seed("probe"))
    del writer  # its memory is needed for training
    held_out = [context.template.improver_messages(x, y.text) for x, y in zip(prompts, answers, strict=True)]
    return train_rl(
        [context.template.improver_messages(prompt, reference) for prompt, reference in rows],
        reward,
        section,
        context.bench(folder, start, "improver"),
        title=f"RL stage {number} ({curriculum.stages[number]})",
        anchor=anchor,
        adapter=context.root / previous / "adapter" if previous and lora else None,
        probe=_probe(context.judge(bases), held_out, lambda conversation: Prompt.of(conversation[:-2])),
    )


def quality_trend(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Did the judge's quality still hold at the end, while the reward was being maximised? Ours.

    Args:
        rows: two or more measurements of ``probe.jsonl``, each with one quality per held-out item, in the same order.

    Returns:
        Means at the first, the late (three quarters of the way, or the last but one) and the last measurement, and the
        last less the late one, paired by item: an interval wholly below zero is what reward hacking looks like.
    """
    first, *middle, last = rows
    late = next((row for row in middle if row["step"] >= 0.75 * last["step"]), rows[-2])
    change = np.array(last["quality"]) - np.array(late["quality"])
    return {
        **{name: float(np.mean(row["quality"])) for name, row in (("first", first), ("late", late), ("last", last))},
        "late_step": late["step"],
        "last_step": last["step"],
        "change": asdict(mean_interval(change.tolist())),
    }


def _references(
    context: Context, folder: Path, number: int, previous: str | None, policy: str, section: RLSection
) -> list[tuple[Prompt, str]]:
    """The stage's (x, y_ref) rows, from its file where an interrupted attempt has sampled them already."""
    path = folder / "references.jsonl"
    if path.is_file():
        stored = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(Prompt.of(row["prompt"]), row["reference"]) for row in stored]
    rng = random.Random(context.seed(folder.name))
    rows = _sample_references(context, number, previous, policy, section, rng)
    lines = (json.dumps({"prompt": x.as_messages(), "reference": y}, ensure_ascii=False) for x, y in rows)
    write_text(path, "\n".join(lines) + "\n")
    return rows


def _sample_references(
    context: Context, number: int, previous: str | None, policy: str, section: RLSection, rng: random.Random
) -> list[tuple[Prompt, str]]:
    source = context.recipe.curriculum.stages[number]
    if source == "data":
        both = [(pair.prompt, y) for pair in context.folds["rl"] for y in (pair.rejected, pair.chosen)]
        return _take(rng, both, section)
    prompts = _take(rng, unique_prompts(context.folds["rl"]), section)
    temperature = context.recipe.curriculum.reference_temperature
    batch = context.recipe.evaluation.batch_size
    improving = source == "improver"
    with progress_bar("references", len(prompts) * (2 if improving else 1)) as advance:
        bases = context.bases()
        writer = Policy.from_pretrained(context.model(policy), bases=bases)
        seed = context.seed(f"references-{number}")
        answers = writer.answer(prompts, temperature=temperature, seed=seed, batch_size=batch, advance=advance)
        if improving:
            assert previous is not None
            improver = Improver.from_pretrained(context.model(previous), bases=bases)
            texts = [answer.text for answer in answers]
            answers = improver.propose(
                prompts, texts, temperature=temperature, seed=seed, batch_size=batch, advance=advance
            )
    return [(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]


def _take(rng: random.Random, items: Sequence[T], section: RLSection) -> list[T]:
    """As many as the steps can use, in random order; all where there are fewer (they then come again)."""
    wanted = section.max_steps * section.batch_size // section.group
    return rng.sample(list(items), k=min(wanted, len(items)))


def unique_prompts(pairs: Sequence[Preference]) -> list[Prompt]:
    return list(dict.fromkeys(pair.prompt for pair in pairs))


def _held_out(context: Context, section: RLSection) -> list[Prompt]:
    return unique_prompts(context.folds["validation"])[: section.probe_items]


def _probe(judge: ScoreJudge, held_out: Sequence[Conversation], prompt_of: Callable[[Conversation], Prompt]) -> Probe:
    """The judge's quality: drawn beside the reward, never trained on."""

    def quality(conversations: list[Conversation], responses: list[str]) -> list[float]:
        return judge.score([prompt_of(conversation) for conversation in conversations], responses)

    return Probe(quality, held_out)
