"""What each stage of a recipe takes: tokens, arithmetic, seconds and memory, before anything is started. Ours.

Counts follow the stages of :mod:`pitlm.run.stages`; a test holds the names to it. Reading x, y_w and y_l once each
where rows share them is the gap model's tree (Eq. 2): x + 3 w + 3 l tokens; RL reads a prompt once per group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pitlm.core.recipe import Recipe, RLSection, TrainSection
from pitlm.plan.costs import Costs, Spent, Workload
from pitlm.plan.hardware import GB, Hardware
from pitlm.plan.shapes import Shape

ACCEPTED_ROUNDS = 2.2
"""Rounds that the loop takes of an answer before it stops: the quickstart's measured mean."""

SHARE_OF_MEMORY = 0.9
"""Assumed: the rest is lost between the pieces that are handed out."""

CONTEXT_BYTES = GB
"""Libraries and their buffers."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage takes: tokens read with gradient, tokens generated, FLOP, seconds, and bytes on one device."""

    name: str
    trained: float
    generated: float
    flops: float
    seconds: float
    peak: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages of a run on some hardware."""

    hardware: Hardware
    stages: tuple[StagePlan, ...]

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> float:
        return max(stage.peak for stage in self.stages)

    @property
    def largest(self) -> StagePlan:
        """The stage that needs the most memory."""
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def fits(self) -> bool:
        return self.peak <= SHARE_OF_MEMORY * self.hardware.memory

    @property
    def cost(self) -> float | None:
        """In the currency of the hardware's price; None without one."""
        price = self.hardware.price
        return None if price is None else self.seconds / 3600 * price * self.hardware.devices


def plan_run(recipe: Recipe, shape: Shape, work: Workload, hardware: Hardware) -> Plan:
    """Every stage that trains or generates, in order."""
    planner = Costs(recipe, shape, work, hardware)
    return Plan(hardware, tuple(_stages(planner)))


def _stages(p: Costs) -> Iterator[StagePlan]:
    recipe = p.recipe
    data = Spent()
    p.encode(data, p.work.pairs * 3)
    yield StagePlan("data", 0, 0, 0, data.seconds, CONTEXT_BYTES)
    yield _sft(p, "policy-sft", recipe.policy_sft, p.x, p.longest_x)
    yield _reward(p, "reward", p.fold)
    if p.work.judge:
        yield _reward(p, "judge", 2 * p.fold)
    if recipe.policy_rl:
        yield _rl(p, "policy-rl", recipe.policy_rl, recipe.policy_rl.max_steps, "data", p.x, p.longest_x)
    yield _sft(p, "improver-sft", recipe.improver_sft, p.beside, p.longest_beside)
    yield _gap(p)
    curriculum = recipe.curriculum
    for stage in curriculum.stage_list:
        yield _rl(p, stage.name, stage.rl, stage.rl.max_steps, stage.source, p.beside, p.longest_beside)
    yield _evaluation(p)


def _steps(section: TrainSection, rows: float) -> float:
    whole = max(1, round(section.epochs * rows)) / section.batch_size
    return min(math.ceil(whole), section.max_steps or math.inf)


def _done(p: Costs, name: str, tally: Spent, peak: float) -> StagePlan:
    seconds = tally.seconds + p.hardware.stage_seconds
    return StagePlan(name, tally.trained, tally.generated, tally.flops, seconds, peak + CONTEXT_BYTES)


def _sft(p: Costs, name: str, section: TrainSection, prompt: float, longest: float) -> StagePlan:
    tally = Spent()
    row = prompt + p.w
    p.encode(tally, p.fold)
    tokens = section.batch_size * row
    p.learn(tally, section, _steps(section, p.fold), tokens, row / 2, headed=tokens)
    held = min(p.validation, section.eval_rows)
    p.read(tally, held * row, row / 2, held / section.batch_size, headed=held * row)
    micro = section.batch_size / section.accumulation * (longest + p.longest_y)
    return _done(p, name, tally, p.states() + p.activations(section, micro) + p.logits(micro))


def _reward(p: Costs, name: str, pairs: float) -> StagePlan:
    tally, section = Spent(), p.recipe.reward
    row = p.x + (p.w + p.l) / 2
    p.encode(tally, pairs)
    p.learn(tally, section, _steps(section, pairs), 2 * section.batch_size * row, row / 2)
    held = min(p.validation, section.eval_rows)
    p.read(tally, 2 * held * row, row / 2, held / section.batch_size)
    micro = 2 * section.batch_size / section.accumulation * (p.longest_x + p.longest_y)
    return _done(p, name, tally, p.states() + p.activations(section, micro))


def tree_tokens(x: float, w: float, l: float, marks: float) -> float:
    """Tokens of Eq. 2's four rows as one tree: x, then each reference with its request, then each candidate twice."""
    return x + (l + marks) + (w + marks) + 2 * (w + l)


def _gap(p: Costs) -> StagePlan:
    tally, section, evaluation = Spent(), p.recipe.gap, p.recipe.evaluation
    tree = tree_tokens(p.x, p.w, p.l, p.work.marks)
    p.encode(tally, 2 * p.fold)
    p.learn(tally, section, _steps(section, p.fold), section.batch_size * tree, p.beside / 2, tree=True)
    fresh = min(evaluation.fresh_pairs, p.test * p.work.prompts)
    p.write(tally, 2 * fresh, p.x, evaluation.batch_size)
    p.encode(tally, 3 * p.test + 6 * fresh)
    p.read(tally, (p.test + 2 * fresh) * tree, p.beside / 2, passes=1)
    micro = section.batch_size / section.accumulation * tree_tokens(p.longest_x, p.longest_y, p.longest_y, p.work.marks)
    health = p.readers(3 + p.work.judge) + p.cache(evaluation.batch_size, p.longest_x + p.limit)
    return _done(p, "gap", tally, max(p.states() + p.activations(section, micro), health))


def _rl(
    p: Costs,
    name: str,
    section: RLSection,
    steps: int,
    source: Literal["data", "policy", "improver"],
    prompt: float,
    longest: float,
) -> StagePlan:
    """Sampling, reading with policy, anchor and reward model; references and probes beside it."""
    tally, size = Spent(), section.batch_size
    groups = size / section.group
    shared = groups if section.share_prompts else size
    evaluation = p.recipe.evaluation
    references = steps * groups
    if source != "data":
        p.write(tally, references, p.x, evaluation.batch_size)
    if source == "improver":
        p.write(tally, references, prompt, evaluation.batch_size)
    read, headed, context = shared * prompt + size * p.y, size * p.y, prompt / 2 + p.y
    step = Spent()
    p.write(step, size, prompt, size, prefills=shared)
    p.learn(step, section, 1, read, context, headed, tree=True)
    once = section.share_prompts and section.accumulation == 1 and not section.gradient_checkpointing
    for _ in range((0 if once else 1) + (section.beta > 0)):
        p.read(step, read, context, 1, headed)
    p.read(step, groups * prompt + size * (p.y + p.beside - p.x), context, 1)  # the reward model, always as trees
    p.encode(step, 2 * size)
    tally.add(step, steps)
    probe = Spent()
    held = min(section.probe_items, p.validation * p.work.prompts)
    p.write(probe, held, prompt, 128)
    p.encode(probe, 2 * held)
    tally.add(probe, steps // section.probe_every + 2)
    micro = size / section.accumulation
    reading = p.activations(section, micro / section.group * longest + micro * p.limit) + p.logits(micro * p.limit)
    writing = p.cache(size, longest + p.limit)
    anchor = p.recipe.peft is None and section.beta > 0  # with LoRA it is what lies under the adapter
    peak = p.states() + p.readers(1 + p.work.judge + anchor) + max(reading, writing)
    return _done(p, name, tally, peak)


def _evaluation(p: Costs) -> StagePlan:
    """Originals, three rounds of both improvers, three loops, best-of-N at the loop's tokens, and every score."""
    tally, recipe, evaluation = Spent(), p.recipe, p.recipe.evaluation
    items = min(evaluation.items, p.test * p.work.prompts)
    rounds, rlhf = min(recipe.loop.rounds, ACCEPTED_ROUNDS), recipe.policy_rl is not None
    samples = round(rounds)
    p.write(tally, items * (1 + samples + rlhf), p.x, evaluation.batch_size)
    p.write(tally, items * (2 * 3 + 3 * rounds), p.beside, evaluation.batch_size)
    judged = (items * (10 + rlhf + 2 * 4) + 2 * p.test) if p.work.judge else 0  # systems, and two curves of four points
    rewards = items * (1 + samples + 2 * rounds)  # R_P chooses among samples, and is one loop's scorer
    gaps = items * (2 * rounds + samples + 3)
    p.encode(tally, items * (2 * 3 + 3 * rounds) + judged + rewards + 2 * gaps)
    p.read(tally, (judged + rewards) * (p.x + p.y), p.x / 2 + p.y, passes=22)
    p.read(tally, gaps * (p.beside + 2 * p.y), p.beside / 2, passes=7)  # candidate and reference itself, as a tree
    peak = p.readers(5 + rlhf + p.work.judge) + p.cache(evaluation.batch_size, p.longest_beside + p.limit)
    return _done(p, "evaluation", tally, peak)
