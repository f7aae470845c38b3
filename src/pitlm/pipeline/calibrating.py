"""Calibrating the margin of a finished run."""

from __future__ import annotations

from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.evaluate.margins import Answered, Calibrated, Promise, calibrate
from pitlm.improve.loop import GapScorer
from pitlm.models.calibration import ALONE, GUARDED, save_calibrations
from pitlm.models.generators import Improver, Policy
from pitlm.models.loading import quiet
from pitlm.models.scorers import GapModel, GuardedGap, RewardModel
from pitlm.pipeline.context import Context
from pitlm.pipeline.run import stored_recipe
from pitlm.pipeline.stages import improver_stage, policy_stage
from pitlm.pipeline.training import unique_prompts
from pitlm.runs.console import progress_bar


def calibrate_run(run: Path, promise: Promise, *, rounds: int | None, items: int | None) -> dict[str, Calibrated]:
    """Choose the margin on fresh answers to prompts that nothing was trained or evaluated on, and store it.

    The items are the prompts of the validation fold and those of the test fold that the evaluation leaves; those that
    it has show what the margin does. The judge is the run's: the truth in the pocket world, else the held-out R_P.

    Args:
        rounds: of the loop that the promise is for; None is the recipe's.
        items: choose on at most this many answers.

    Raises:
        InputError: no finished run there, or no prompts left.
    """
    quiet()
    recipe = stored_recipe(run)
    context = Context(recipe, run)
    budgets = {"margin": None, "tokens": None, "seconds": None, "cost": None}
    settings = recipe.loop.model_copy(update={**budgets, "rounds": rounds or recipe.loop.rounds})
    test = unique_prompts(context.folds["test"])
    shown, rest = test[: recipe.evaluation.items], test[recipe.evaluation.items :]
    chosen = [*unique_prompts(context.folds["validation"]), *rest][:items]
    if not chosen or not shown:
        raise InputError(f"{run}: found no held-out prompts, expected some in the folds validation and test")
    policy = Policy.from_pretrained(context.model(policy_stage(recipe)), recipe.model.dtype)
    improver = Improver.from_pretrained(context.model(improver_stage(recipe)), recipe.model.dtype)
    gap = GapModel.from_pretrained(context.model("gap"))
    both = GuardedGap(gap, RewardModel.from_pretrained(context.model("reward")))
    scorers: dict[str, GapScorer] = {ALONE: gap, GUARDED: both}
    with progress_bar("calibrating", len(scorers) * settings.rounds * (len(chosen) + len(shown))) as advance:
        answered = [
            Answered(
                prompts,
                [
                    answer.text
                    for answer in policy.answer(
                        prompts,
                        temperature=recipe.evaluation.policy_temperature,
                        seed=context.seed(f"calibration-{name}"),
                    )
                ],
            )
            for name, prompts in (("choosing", chosen), ("shown", shown))
        ]
        made = {
            name: calibrate(
                name,
                scorer,
                improver=improver,
                settings=settings,
                promise=promise,
                choosing=answered[0],
                held_out=answered[1],
                pairs=context.folds["test"],
                judge=context.judge(),
                seed=context.seed("calibration"),
                advance=advance,
            )
            for name, scorer in scorers.items()
        }
    save_calibrations(context.model("gap"), {name: found.calibration for name, found in made.items()})
    return made
