"""Calibrating the margin of a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.data.folds import unique_prompts
from pitlm.data.items import Failure, read_items
from pitlm.evaluate.margins import Answered, Calibrated, Promise, calibrate, play, rounds_to_play
from pitlm.io.console import progress_bar
from pitlm.loop.loop import GapScorer
from pitlm.models.calibration import ALONE, GUARDED, save_calibrations
from pitlm.models.generators import Improver, Policy
from pitlm.models.loading import quiet
from pitlm.models.scorers import GapModel, GuardedGap, RewardModel
from pitlm.report.margin_plot import draw_margins
from pitlm.run.context import Context
from pitlm.run.finished import stored_recipe


def calibrate_run(
    run: Path, promise: Promise, *, rounds: int | None, items: int | None, prompts: Path | None = None
) -> dict[str, Calibrated]:
    """Choose the margin on fresh answers to prompts that nothing was trained or selected on; store it, and a picture.

    The items are the prompts of the validation fold, those of the test fold that the evaluation leaves, and further
    ones; the prompts that the evaluation has show what the margin does. The judge is the run's: the truth in the pocket
    world, else the held-out R_P.

    Args:
        rounds: of the loop that the promise is for; None is the recipe's.
        items: choose on at most this many answers.
        prompts: a file of further prompts, whose responses are used where it has some. The more there are, the less
            a promise costs.

    Raises:
        InputError: no finished run there, no prompts left, or a bad row among the further ones.
    """
    quiet()
    recipe = stored_recipe(run)
    context = Context(recipe, run)
    unbounded = {"margin": None, "tokens": None, "seconds": None, "cost": None}
    settings = recipe.loop.model_copy(update={**unbounded, "rounds": rounds or recipe.loop.rounds})
    sets = fresh_answers(context, items, prompts)
    bases = context.bases()
    improver = Improver.from_pretrained(context.model(recipe.improver_stage), bases=bases)
    gap = GapModel.from_pretrained(context.model("gap"), bases=bases)
    both = GuardedGap(gap, RewardModel.from_pretrained(context.model("reward"), bases=bases))
    judge = context.judge(bases)
    scorers: dict[str, GapScorer] = {ALONE: gap, GUARDED: both}
    with progress_bar("calibrating", rounds_to_play(len(scorers), sets, settings)) as advance:
        seed = context.seed("calibration")
        played = play(scorers, sets, improver=improver, settings=settings, seed=seed, advance=advance)
    made = {
        name: calibrate(
            name,
            scorer,
            choosing=played[name][0],
            held_out=played[name][1],
            settings=settings,
            promise=promise,
            pairs=context.folds["test"],
            judge=judge,
        )
        for name, scorer in scorers.items()
    }
    draw_margins(made, run / "calibration.svg")
    save_calibrations(context.model("gap"), {name: found.calibration for name, found in made.items()})
    return made


def fresh_answers(context: Context, items: int | None, more: Path | None = None) -> tuple[Answered, Answered]:
    """Fresh answers of the policy to held-out prompts: those to choose a margin on, and those to show it on.

    Args:
        more: a file of further prompts to choose on; those that are in a fold of the run are left out.

    Raises:
        InputError: a fold without prompts, or a bad row in the file.
    """
    evaluation = context.recipe.evaluation
    test = unique_prompts(context.folds["test"])
    shown, left = test[: evaluation.items], test[evaluation.items :]
    given: dict[Prompt, str | None] = dict.fromkeys([*unique_prompts(context.folds["validation"]), *left])
    if more is not None:
        known = {pair.prompt for pairs in context.folds.values() for pair in pairs}
        given |= {x: y for x, y in _further(more) if x not in known}
    chosen = dict(list(given.items())[:items])
    if not chosen or not shown:
        raise InputError(f"{context.root}: found no held-out prompts, expected some in the folds validation and test")
    policy = Policy.from_pretrained(context.model(context.recipe.policy_stage), bases=context.bases())

    def answered(asked: Mapping[Prompt, str | None], name: str) -> Answered:
        seed = context.seed(f"calibration-{name}")
        open_ = [prompt for prompt, response in asked.items() if response is None]
        made = iter(policy.answer(open_, temperature=evaluation.policy_temperature, seed=seed))
        return Answered(list(asked), [next(made).text if y is None else y for y in asked.values()])

    return answered(chosen, "choosing"), answered(dict.fromkeys(shown), "shown")


def _further(path: Path) -> Iterator[tuple[Prompt, str | None]]:
    for item in read_items(path):
        if isinstance(item, Failure):
            raise InputError(f"{item.where}: {item.reason}")
        yield item.prompt, item.response
