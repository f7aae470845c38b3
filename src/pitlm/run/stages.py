"""A recipe as a list of stages, in the order of the paper's method section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pitlm.core.recipe import Recipe, RLSection
from pitlm.io.digest import digest
from pitlm.method.launch import Launch
from pitlm.run import training
from pitlm.run.context import Context
from pitlm.run.evaluation import evaluate
from pitlm.run.folder import Stage
from pitlm.run.judges import judge_settings
from pitlm.run.prepare import prepare
from pitlm.run.reporting import report


def build_stages(recipe: Recipe, root: Path, *, launch: Launch | None = None, rank: bool = False) -> list[Stage]:
    """Every stage of a run, each with the settings that it depends on and the stages that it reads.

    Args:
        launch, rank: how training is spread over processes; see :class:`Context`. The outcome does not depend on it.
    """
    context = Context(recipe, root, launch, rank)
    policy = recipe.policy_stage
    judges = [] if context.pocket else ["judge"]
    learning = [*_policies(context, judges), *_improvers(context, policy, judges)]
    rl = _curriculum(context, policy, judges)
    improver = rl[-1].name
    data = {
        "data": recipe.data.model_dump(exclude={"source"}),
        **_contents("data.source", recipe.data.source, digest(recipe.data.source)),
    }
    names = ["data", *(stage.name for stage in (*learning, *rl))]
    return [
        Stage("data", {**_common(recipe), **data}, [], lambda folder: prepare(context, folder)),
        *learning,
        *rl,
        Stage(
            "evaluation",
            {
                **_common(recipe),
                "evaluation": recipe.evaluation.model_dump(exclude={"judges"}),
                "loop": recipe.loop.model_dump(),
                **judge_settings(recipe.evaluation.judges),
            },
            ["data", policy, "reward", "improver-sft", "gap", improver, *judges],
            lambda folder: evaluate(context, folder, policy, improver),
        ),
        Stage("report", {"name": recipe.name}, [*names, "evaluation"], lambda folder: report(context, folder, names)),
    ]


def _policies(context: Context, judges: list[str]) -> list[Stage]:
    """Policy SFT, R_P, the judge where there is no truth, and ordinary RLHF where the recipe asks for it."""
    recipe = context.recipe
    common = _common(recipe)
    reward = {**common, "train": recipe.reward.model_dump()}
    stages = [
        Stage(
            "policy-sft",
            {**common, "train": recipe.policy_sft.model_dump()},
            ["data"],
            lambda folder: training.policy_sft(context, folder),
        ),
        Stage(
            "reward",
            reward,
            ["data", "policy-sft"],
            lambda folder: training.reward_model(context, folder, ["reward"]),
        ),
    ]
    if judges:
        # The judge never sees a pair that R_P or R_PIT is trained on: neither is judged by its own errors.
        stages.append(
            Stage(
                "judge",
                {**reward, "folds": ["sft", "rl"]},
                ["data", "policy-sft"],
                lambda folder: training.reward_model(context, folder, ["sft", "rl"]),
            )
        )
    if recipe.policy_rl:
        stages.append(
            Stage(
                "policy-rl",
                {**common, "train": _rl(recipe.policy_rl)},
                ["data", "policy-sft", "reward", *judges],
                lambda folder: training.policy_rl(context, folder),
            )
        )
    return stages


def _improvers(context: Context, policy: str, judges: list[str]) -> list[Stage]:
    """Improver SFT and R_PIT."""
    recipe = context.recipe
    common = _common(recipe)
    fresh = {
        "fresh_pairs": recipe.evaluation.fresh_pairs,
        "policy_temperature": recipe.evaluation.policy_temperature,
        "batch_size": recipe.evaluation.batch_size,  # which samples share a stream of random numbers
    }
    return [
        Stage(
            "improver-sft",
            {**common, "train": recipe.improver_sft.model_dump()},
            ["data", *(["policy-sft"] if recipe.model.improver_start == "policy" else [])],
            lambda folder: training.improver_sft(context, folder),
        ),
        Stage(
            "gap",
            {**common, "train": recipe.gap.model_dump(), **fresh},
            ["data", "reward", policy, "improver-sft", *judges],
            lambda folder: training.gap_model(context, folder, policy),
        ),
    ]


def _contents(key: str, source: str | None, found: str | None) -> dict[str, str | None]:
    """Where an input lies does not matter, only what it is: another spelling of the path makes nothing stale."""
    return {f"contents of {key}": found} if found else {key: source}


def _common(recipe: Recipe) -> dict[str, Any]:
    model = recipe.model
    return {
        "seed": recipe.seed,
        "model": model.model_dump(exclude={"base", "reward_base"}),
        **_contents("model.base", model.base, digest(model.base, sample=True)),
        **_contents("model.reward_base", model.reward_base, digest(model.reward_base, sample=True)),
        "template": recipe.template.model_dump(),
        # Named only where weights are not held as they are saved: older runs stay as they are.
        "peft": recipe.peft.model_dump(exclude=None if recipe.quantize else {"quantize"}) if recipe.peft else None,
    }


def _rl(section: RLSection) -> dict[str, Any]:
    """The settings of RL; the sampler only where it is not the usual one: older runs stay as they are."""
    usual = section.rollouts == "transformers"
    return section.model_dump(exclude={"rollouts", "rollout_server"} if usual else None)


def _curriculum(context: Context, policy: str, judges: list[str]) -> list[Stage]:
    """The stages of curriculum RL, each going on from the one before."""
    common = _common(context.recipe)
    curriculum = context.recipe.curriculum
    stages: list[Stage] = []
    for number, source in enumerate(curriculum.stages):
        previous = stages[-1].name if stages else None
        settings = {
            **common,
            "source": source,
            "train": _rl(curriculum.rl),
            "steps": curriculum.steps[number] if curriculum.steps else curriculum.rl.max_steps,
            "reference_temperature": curriculum.reference_temperature,
            # Named only where it is not the usual one: runs from before there was a choice stay as they are.
            **({} if curriculum.reward == "gap" else {"reward": curriculum.reward}),
        }

        def work(folder: Path, number: int = number, previous: str | None = previous) -> dict[str, Any]:
            return training.curriculum_stage(context, folder, number, previous, policy)

        scorer = "gap" if curriculum.reward == "gap" else "reward"
        needs = ["data", "improver-sft", scorer, policy, *([previous] if previous else []), *judges]
        stages.append(Stage(curriculum.stage_list[number].name, settings, needs, work))
    return stages
