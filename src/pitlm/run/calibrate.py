"""`pit calibrate`: the margin of a finished run, chosen on fresh answers; its file and its picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.data.folds import unique_prompts
from pitlm.data.items import Failure, read_items
from pitlm.engines.generators import Improver, Policy
from pitlm.loop.calibration import Promise, save_calibrations
from pitlm.loop.margin import Answers, Calibrated, calibrate
from pitlm.models.loading import quiet
from pitlm.models.scorers import GapModel, GuardedGap, RewardModel
from pitlm.report.plots import draw_margins
from pitlm.run.context import Context
from pitlm.run.folder import stored_recipe
from pitlm.worlds.known import KNOWN


def calibrate_run(run: Path, promise: Promise) -> dict[str, Calibrated]:
    """Choose the margin on fresh answers to prompts that no model was trained or selected on.

    The margin is chosen on the prompts of the validation fold, on the prompts of the test fold that the evaluation does
    not use, and on further prompts. The prompts of the evaluation show the effect of the margin. The judge is that of
    the run: the truth where it is known, else the held-out R_P. The margin is stored beside the gap model, and the
    picture of its choice in the folder of the run.

    Returns:
        The calibration of R_PIT alone and of R_PIT with R_P, by the name of the scorer.

    Raises:
        InputError: no finished run there, no prompts left, or a bad row among the further prompts.
    """
    quiet()
    recipe = stored_recipe(run)
    changes = dict.fromkeys(("margin", "tokens", "seconds", "cost")) | {"rounds": promise.rounds or recipe.loop.rounds}
    settings = recipe.loop.model_copy(update=changes)
    context = Context(recipe, run)
    choosing, shown = fresh_answers(context, promise.items, promise.prompts)
    bases = context.bases()
    improver = context.open(Improver, recipe.improver_stage, bases)
    gap, judge = context.open(GapModel, "gap", bases), context.judge(bases)
    scorers = {GapModel.name: gap, GuardedGap.name: GuardedGap(gap, context.open(RewardModel, "reward", bases))}
    how: dict[str, Any] = {"settings": settings, "promise": promise, "judge": judge.name, "score": judge.score}
    pairs, seed = context.folds["test"], context.seed("calibration")
    made = calibrate(scorers, choosing, shown, improver=improver, pairs=pairs, seed=seed, **how)
    draw_margins(made, run / "calibration.svg")
    save_calibrations(context.model("gap"), {name: found.calibration for name, found in made.items()})
    return made


def fresh_answers(context: Context, items: int | None, more: Path | None = None) -> tuple[Answers, Answers]:
    """Fresh answers of the policy to held-out prompts: those to choose a margin on, and those to show it on.

    Args:
        items: the largest number of answers to choose on; None is no limit.
        more: a file of further prompts to choose on. A row's own response is used if it has one. Prompts in a fold of
            the run are left out.

    Raises:
        InputError: a fold without prompts, or a bad row in the file.
    """
    asked, shown = _prompts(context, items, more)
    policy = context.open(Policy, context.recipe.policy_stage)
    return _answered(context, policy, asked, "choosing"), _answered(context, policy, dict.fromkeys(shown), "shown")


def answers_to_choose_on(context: Context, policy: Policy) -> Answers:
    """The part of :func:`fresh_answers` to choose a margin on."""
    return _answered(context, policy, _prompts(context, context.recipe.evaluation.items, None)[0], "choosing")


def _prompts(context: Context, items: int | None, more: Path | None) -> tuple[dict[Prompt, str | None], list[Prompt]]:
    """The prompts to choose a margin on, with a response if they have one, and the prompts to show it on."""
    test = unique_prompts(context.folds["test"])
    shown, left = test[: context.recipe.evaluation.items], test[context.recipe.evaluation.items :]
    given: dict[Prompt, str | None] = dict.fromkeys([*unique_prompts(context.folds["validation"]), *left])
    world = KNOWN.get(context.recipe.data.world or "")
    known = {pair.prompt for pairs in context.folds.values() for pair in pairs}
    for item in read_items(more) if more is not None else ():
        if isinstance(item, Failure):
            raise InputError(f"{item.where}: {item.reason}")
        if world is not None and not world.asks(item.prompt):
            raise InputError.at(item.where, found=repr(item.prompt.text[:60]), expected=f"a prompt of {world.name}")
        if item.prompt not in known:
            given[item.prompt] = item.response
    chosen = dict(list(given.items())[:items])
    if not chosen or not shown:
        raise InputError(f"{context.root}: found no held-out prompts, expected some in the folds validation and test")
    return chosen, shown


def _answered(context: Context, policy: Policy, asked: Mapping[Prompt, str | None], name: str) -> Answers:
    seed, temperature = context.seed(f"calibration-{name}"), context.recipe.evaluation.policy_temperature
    unanswered = [prompt for prompt, response in asked.items() if response is None]
    made = iter(policy.answer(unanswered, temperature=temperature, seed=seed))
    return [(x, next(made).text if y is None else y) for x, y in asked.items()]
