"""Estimates the tokens, arithmetic, seconds and memory of each stage of a recipe, before the run starts.

The stages are those of :mod:`pitlm.run.stages`, and the systems of the evaluation those of :mod:`pitlm.loop.baselines`.
The gap model reads x once and each reference once (Eq. 2): x + 3 w + 3 l tokens; R_P reads x + w + l. RL reads a prompt
once per group.
"""

import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass

from pitlm.core.recipe import Recipe
from pitlm.loop.baselines.baseline import CHAIN_ROUNDS, chosen_baselines, work_per_item
from pitlm.plan.costs import Costs, Reading, StagePlan, tree_tokens
from pitlm.plan.hardware import GB, Hardware
from pitlm.plan.sizes import Shape, Workload
from pitlm.run.stages import PipelineStage, Task, build_stages

ACCEPTED_ROUNDS = 2.2
"""Rounds that the loop takes for one answer before it stops: the mean that was measured in the quickstart."""

SHARE_OF_MEMORY = 0.9
"""Assumed share of a device's memory that can be used; fragmentation takes the rest."""

CONTEXT_BYTES = GB
"""Bytes that libraries and their buffers take on a device."""


WRITING = ["policy", "improver", "dpo"]
"""Stages on pairs whose model writes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages of a run on some hardware."""

    hardware: Hardware
    stages: tuple[StagePlan, ...]

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def largest(self) -> StagePlan:
        """The stage that needs the most memory."""
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def fits(self) -> bool:
        return self.largest.peak <= SHARE_OF_MEMORY * self.hardware.memory

    @property
    def cost(self) -> float | None:
        """In the currency of the hardware's price; None without one."""
        price = self.hardware.price
        return None if price is None else self.seconds / 3600 * price * self.hardware.devices


def plan_run(recipe: Recipe, shape: Shape, work: Workload, hardware: Hardware) -> Plan:
    """Every stage of the pipeline but the report, in order."""
    costs, plans = Costs(recipe, shape, work, hardware), list[StagePlan]()
    for stage in build_stages(recipe, contents=False):
        if stage.task != "report":
            plan = StagePlan(stage.name, peak=CONTEXT_BYTES + hardware.kernels)
            PLANNERS[stage.task](costs, stage, plan)
            if hardware.kernels and plans:  # the process keeps memory that the stage before has freed
                plan.peak = max(plan.peak, plans[-1].peak)
            plans.append(plan)
    return Plan(hardware, tuple(plans))


def _data(p: Costs, stage: PipelineStage, plan: StagePlan) -> None:
    if "answers" in stage.settings:  # the start model writes both answers of each pair
        p.write(plan, 2 * p.work.pairs / p.work.labelled, p.x, p.recipe.evaluation.batch_size)
        plan.peak += p.weights(1) + p.cache(p.recipe.evaluation.batch_size, p.longest_x + p.limit)
    p.encode(plan, p.work.pairs * 3)


def _on_pairs(p: Costs, stage: PipelineStage, plan: StagePlan) -> None:
    """SFT, DPO, R_P or R_PIT: one pass over the pairs of the folds, and one over held-out pairs."""
    section, tree, dpo, head = stage.training, *(stage.task in tasks for tasks in (["gap"], ["dpo"], WRITING))
    pairs = sum(p.folds[name] for name in stage.folds) * (2 if dpo else 1)  # DPO has each pair beside two references
    if tree:
        each, context = tree_tokens(p.x, p.w, p.l, p.work.marks), p.beside / 2
        longest = tree_tokens(p.longest_x, p.longest_y, p.longest_y, p.work.marks)
    else:
        x, longest_x = (p.beside, p.longest_beside) if stage.task in ("improver", "dpo") else (p.x, p.longest_x)
        rows, answers = 2 if dpo else 1, 1 if head and not dpo else 2
        each, context = rows * x + p.w + (p.l if answers == 2 else 0), (x + p.w) / 2
        longest = rows * longest_x + p.longest_y * answers

    def reading(count: float) -> Reading:
        return Reading(count * each, context, count * each if head else 0)

    p.encode(plan, pairs * (2 if tree else 1))
    steps = section.max_steps or math.ceil(max(1, round(section.epochs * pairs)) / section.batch_size)
    p.learn(plan, section, steps, reading(section.batch_size), tree)
    if dpo:  # the anchor reads the same rows
        p.read(plan, reading(steps * section.batch_size), steps)
        plan.peak += p.readers(p.recipe.peft is None)
    held = min(p.validation, section.eval_rows)
    p.read(plan, reading(held), held / section.batch_size)
    micro = section.batch_size / section.accumulation * longest
    plan.seconds += p.hardware.stage_seconds
    plan.peak += p.states() + p.activations(section, micro) + (p.logits(micro) if head else 0)


def _gap(p: Costs, stage: PipelineStage, plan: StagePlan) -> None:
    """R_PIT, and its health on held-out pairs and on pairs of fresh answers."""
    _on_pairs(p, stage, plan)
    evaluation = p.recipe.evaluation
    fresh = min(evaluation.fresh_pairs, p.test * p.work.prompts)
    p.write(plan, 2 * fresh, p.x, evaluation.batch_size)
    p.encode(plan, 3 * p.test + 6 * fresh)
    p.read(plan, Reading((p.test + 2 * fresh) * tree_tokens(p.x, p.w, p.l, p.work.marks), p.beside / 2), passes=1)
    health = p.readers(len(stage.needs) - 1) + p.cache(evaluation.batch_size, p.longest_x + p.limit)
    plan.peak = max(plan.peak, health + CONTEXT_BYTES)


def _rl(p: Costs, stage: PipelineStage, plan: StagePlan) -> None:
    """References, sampling, reading with policy, anchor and reward model, and probes."""
    section, evaluation, size = stage.rl, p.recipe.evaluation, stage.rl.batch_size
    p = copy(p)
    p.y = min(p.work.sampled or p.y, p.limit)
    prompt, longest = (p.beside, p.longest_beside) if stage.curriculum else (p.x, p.longest_x)
    groups = size / section.group
    shared = groups if section.share_prompts else size
    source = stage.curriculum.source if stage.curriculum else "data"
    if source != "data":
        p.write(plan, section.max_steps * groups, p.x, evaluation.batch_size)
    if source == "improver":
        p.write(plan, section.max_steps * groups, prompt, evaluation.batch_size)
    context = prompt / 2 + p.y
    reading = Reading(shared * prompt + size * p.y, context, headed=size * p.y)
    step = StagePlan("one step")
    p.write(step, size, prompt, size, prefills=shared)
    p.learn(step, section, 1, reading, tree=True)
    once = section.share_prompts and section.accumulation == 1 and not section.gradient_checkpointing
    for _ in range((0 if once else 1) + (section.beta > 0)):
        p.read(step, reading, passes=1)
    p.read(step, Reading(groups * prompt + size * p.y, context), passes=1)  # the reward
    if "judge" in stage.needs:
        p.read(step, Reading(groups * p.x + size * p.y, context), passes=1)
    p.encode(step, 2 * size)
    plan.add(step, section.max_steps)
    probe = StagePlan("one probe")
    held = min(section.probe_items, p.validation * p.work.prompts)
    p.write(probe, held, prompt, 128)
    p.encode(probe, 2 * held)
    plan.add(probe, section.max_steps // section.probe_every + 2)
    micro = size / section.accumulation
    learning = p.activations(section, micro / section.group * longest + micro * p.limit) + p.logits(micro * p.limit)
    plan.seconds += p.hardware.stage_seconds
    # With LoRA the anchor is the model under the adapter.
    plan.peak += p.states() + p.readers(1 + ("judge" in stage.needs) + (p.recipe.peft is None and section.beta > 0))
    plan.peak += max(learning, p.cache(size, longest + p.limit))


def _evaluation(p: Costs, stage: PipelineStage, plan: StagePlan) -> None:
    """The answers of all systems of the comparison, and every score of R_PIT, R_P and the judge."""
    recipe, evaluation = p.recipe, p.recipe.evaluation
    items = min(evaluation.items, p.test * p.work.prompts)
    baselines = chosen_baselines(recipe)
    work = work_per_item(baselines, min(recipe.loop.rounds, ACCEPTED_ROUNDS))
    p.write(plan, items * work.answers, p.x, evaluation.batch_size)
    p.write(plan, items * work.proposals, p.beside, evaluation.batch_size)
    judged = len(baselines) + 2 + 2 * (CHAIN_ROUNDS + 1)  # every system, and the quality by round of two improvers
    rewards = items * work.rewards + ((items * judged + 2 * p.test) if "judge" in stage.needs else 0)
    gaps = items * (work.gaps + 3)  # the report shows the gaps of three systems
    p.encode(plan, items * work.proposals + rewards + 2 * gaps)
    p.read(plan, Reading(rewards * (p.x + p.y), p.x / 2 + p.y), passes=judged)
    # Each gap is read with its reference's own score, as a tree.
    p.read(plan, Reading(gaps * (p.beside + 2 * p.y), p.beside / 2), passes=7)
    plan.seconds += p.hardware.stage_seconds
    models = len(stage.needs) - 1 + (len(recipe.curriculum.stages) > 1)  # also the improver after the first stage
    plan.peak += p.readers(models) + p.cache(evaluation.batch_size, p.longest_beside + p.limit)


PLANNERS: Mapping[Task, Callable[[Costs, PipelineStage, StagePlan], None]] = {
    "data": _data,
    **dict.fromkeys(("policy", "improver", "dpo", "reward"), _on_pairs),
    "gap": _gap,
    **dict.fromkeys(("policy-rl", "curriculum"), _rl),
    "evaluation": _evaluation,
}
"""The function that plans each kind of stage."""
