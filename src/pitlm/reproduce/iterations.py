"""A stage beside those of a run: improvers applied again and again from several starts, and the worth of each version.

The paper improves five times, and starts from answers of the policy. Reviewers asked about starts that are better or
worse than y_w, and whether R_PIT can still tell better from worse in later rounds.
"""

from pathlib import Path
from typing import Any

from pitlm.core.nouns import Improvement
from pitlm.data.folds import unique_prompts
from pitlm.engines.generators import Improver, Policy
from pitlm.io.atomic import write_json_lines
from pitlm.io.console import progress_bar
from pitlm.loop.baselines.baseline import ORIGINAL, PIT, SFT
from pitlm.loop.chains import always_accept, incumbents
from pitlm.loop.loop import improve_many
from pitlm.models.scorers import GapModel, RewardModel
from pitlm.run.context import Context

ROUNDS = 5
CHOSEN, REJECTED = "y_w", "y_l"
"""Names of the two starts that come from the data."""
FILE = "iterations.jsonl"


def iterate(context: Context, folder: Path) -> dict[str, Any]:
    """Improve each start in :data:`ROUNDS` rounds, without the stop rule and with it; one row for each item and start.

    A row has the utility by the judge and the score by R_P of each version without the stop rule, the gap of each
    version to the version before, and the same three figures for the answer that the stop rule keeps, whose gap is that
    to the start.
    """
    recipe, bases = context.recipe, context.bases()
    policy = context.open(Policy, recipe.policy_stage, bases)
    improver, corrector = (context.open(Improver, name, bases) for name in (recipe.improver_stage, "improver-sft"))
    gap, reward = context.open(GapModel, "gap", bases), context.open(RewardModel, "reward", bases)
    judge, seed = context.judge(bases), context.seed("iterations")
    settings = recipe.loop.model_copy(update={"rounds": ROUNDS, "proposals": 1})
    prompts = unique_prompts(context.folds["test"])[: recipe.evaluation.items]
    temperature = recipe.evaluation.policy_temperature
    y0 = [answer.text for answer in policy.answer(prompts, temperature=temperature, seed=context.seed(ORIGINAL))]
    pairs = {pair.prompt: pair for pair in context.folds["test"]}
    starts = {
        PIT: (improver, y0),
        SFT: (corrector, y0),
        CHOSEN: (improver, [pairs[x].chosen for x in prompts]),
        REJECTED: (improver, [pairs[x].rejected for x in prompts]),
    }
    rows: list[dict[str, Any]] = []
    with progress_bar("iterations", len(starts) * len(prompts)) as advance:
        for name, (proposer, answers) in starts.items():
            both = list(zip(prompts, answers, strict=True))
            free = always_accept(both, improver=proposer, gap=gap, settings=settings, seed=seed)
            held = improve_many(prompts, answers, improver=proposer, gap=gap, seed=seed, **settings.model_dump())
            versions = [*zip(*map(incumbents, free), strict=True), [trace.final for trace in held]]
            figures = {
                "utility": [judge.score(prompts, list(texts)) for texts in versions],
                "reward": [reward.scores(prompts, list(texts)).tolist() for texts in versions],
            }
            ends = gap.gaps([Improvement(trace.prompt, trace.original, trace.final) for trace in held]).tolist()
            to_policy = gap.gaps([Improvement(*row) for row in zip(prompts, y0, answers, strict=True)]).tolist()
            for item, trace in enumerate(free):
                own = {figure: [values[item] for values in by_version] for figure, by_version in figures.items()}
                kept = {figure: values.pop() for figure, values in own.items()} | {"gap": ends[item]}
                about = {"start": name, "item": item, "gap to the policy": to_policy[item]}
                rows.append({**about, **own, "gap": trace.gaps, "kept": kept})
            advance(len(prompts))
    write_json_lines(folder / FILE, rows)
    return {"rows": len(rows)}
