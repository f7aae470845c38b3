"""Does R_PIT know PIT's own answers better after it has seen labels on them? Measured in the pocket world.

    python benchmarks/slow/refresh.py --runs runs/reproduce/seed-*/as-it-is --json build/bench/refresh.json

The paper trains R_PIT once, on the answers of the data. For each finished run this benchmark trains R_PIT further, once
on labels on PIT's answers, and once on as many new labels on answers like those of the data. The world labels both,
with the noise of the run's own labels. Then each R_PIT gives the reward of one more stage of RL, from PIT, and decides
in the loop. Each finished run and each R_PIT has a folder in --out, and a run that was measured is not measured again.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pitlm.core.nouns import Improvement, Preference, Prompt
from pitlm.data.folds import unique_prompts
from pitlm.engines.generators import Improver, Policy
from pitlm.evaluate.statistics import mean_interval
from pitlm.loop.baselines.baseline import ORIGINAL
from pitlm.loop.chains import always_accept, incumbents
from pitlm.loop.loop import improve_many
from pitlm.method.curriculum import train_stage
from pitlm.method.supervised import gap_rows, train_on_rows
from pitlm.models.loading import quiet
from pitlm.models.scorers import GapModel
from pitlm.run.context import Context
from pitlm.run.folder import stored_recipe
from pitlm.worlds.pocket import NOISE, make_preferences, utility
from pitlm.worlds.world import prefer

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import parser_of, save

OLD, DATA, OWN = "as it is", "more labels like those of the data", "labels on PIT's answers"
STAGES = ["data", "policy", "policy"]
"""The stages of the run, and the one that this benchmark adds."""


def own_labels(context: Context, policy: Policy, improver: Improver) -> list[Preference]:
    """Labelled pairs of answers to the prompts of RL: PIT's answer beside its reference, or beside another of PIT's."""
    rng, noise = random.Random(context.seed("refresh")), context.recipe.data.noise or NOISE
    prompts = unique_prompts(context.folds["rl"])
    references = [y.text for y in policy.answer(prompts, temperature=1.0, seed=context.seed("refresh-references"))]
    first, second = (
        [y.text for y in improver.propose(prompts, references, temperature=1.0, seed=context.seed(f"refresh-{n}"))]
        for n in (1, 2)
    )
    pairs = []
    for number, (x, a) in enumerate(zip(prompts, first, strict=True)):
        b = references[number] if number % 2 else second[number]
        if a != b:
            pairs.append(prefer(rng, x, a, b, utility(x, a) - utility(x, b), noise=noise))
    return pairs


def further(context: Context, pairs: Sequence[Preference], root: Path) -> None:
    """Train the run's R_PIT on further pairs, with the settings of its own training."""
    rows = gap_rows(pairs, context.tokenizer, context.template)
    held_out = gap_rows(context.folds["validation"][:256], context.tokenizer, context.template)
    bench = context.bench(root / "gap", context.model("gap"), "gap")
    train_on_rows("gap", rows, held_out, context.recipe.gap, bench)


def beside(context: Context, root: Path, gap: Path | None) -> Context:
    """A run whose stages are links to those of the run, but for R_PIT and one more stage of RL."""
    root.mkdir(parents=True, exist_ok=True)
    linked = [path for path in context.root.iterdir() if path.is_dir() and (gap is None or path.name != "gap")]
    for path in linked:
        link = root / path.name
        if not link.exists():
            link.symlink_to(path.resolve(), target_is_directory=True)
    curriculum = context.recipe.curriculum
    steps = [stage.rl.max_steps for stage in curriculum.stage_list]
    longer = curriculum.model_copy(update={"stages": STAGES, "steps": [*steps, steps[-1]]})
    return Context(context.recipe.model_copy(update={"curriculum": longer}), root)


def right(model: GapModel, changes: Sequence[tuple[Prompt, str, str]]) -> list[float]:
    """100 for each change of the utility, from the first answer to the second, whose sign the gap has; else 0."""
    moved = [(x, a, b) for x, a, b in changes if utility(x, a) != utility(x, b)]
    gaps = model.gaps([Improvement(x, a, b) for x, a, b in moved]).tolist() if moved else []
    return [100.0 * ((gap > 0) == (utility(x, b) > utility(x, a))) for gap, (x, a, b) in zip(gaps, moved, strict=True)]


def measure(root: Path, out: Path) -> dict[str, Any]:
    """Train, and measure, for one run; the values of each figure by R_PIT."""
    context = Context(stored_recipe(root), root)
    recipe, bases = context.recipe, context.bases()
    policy = context.open(Policy, recipe.policy_stage, bases)
    improver = context.open(Improver, recipe.improver_stage, bases)
    pairs = own_labels(context, policy, improver)
    more = {DATA: make_preferences(len(pairs), recipe.seed + 10_000, recipe.data.noise), OWN: pairs}
    better = sum(utility(p.prompt, p.chosen) > utility(p.prompt, p.rejected) for p in pairs)
    worse = sum(utility(p.prompt, p.chosen) < utility(p.prompt, p.rejected) for p in pairs)
    found: dict[str, Any] = {"labels": len(pairs), "of different utility": better + worse, "right labels": better}

    prompts = unique_prompts(context.folds["test"])[: recipe.evaluation.items]
    how: dict[str, Any] = {"temperature": recipe.evaluation.policy_temperature, "seed": context.seed(ORIGINAL)}
    y0 = [answer.text for answer in policy.answer(prompts, **how)]
    drawn = [
        [y.text for y in improver.propose(prompts, y0, temperature=1.0, seed=context.seed(f"refresh-test-{n}"))]
        for n in (1, 2)
    ]
    settings, seed = recipe.loop.model_copy(update={"proposals": 1}), context.seed("refresh-loop")
    before = context.open(GapModel, "gap", bases)
    both = [*zip(prompts, y0, strict=True)]
    chains = always_accept(both, improver=improver, gap=before, settings=settings, seed=seed)
    versions = [*zip(*map(incumbents, chains), strict=True)]

    def changes(first: Sequence[str], second: Sequence[str]) -> list[tuple[Prompt, str, str]]:
        return [*zip(prompts, first, second, strict=True)]

    later = [change for n in range(1, len(versions) - 1) for change in changes(versions[n], versions[n + 1])]
    held_out = [(pair.prompt, pair.rejected, pair.chosen) for pair in context.folds["test"]]
    mean: Callable[[Sequence[str]], float] = lambda ys: float(np.mean([*map(utility, prompts, ys)]))  # noqa: E731
    found["utility of the original"], found["utility of round 1"] = mean(y0), mean(versions[1])
    for name, labels in {OLD: [], **more}.items():
        own = beside(context, out / name.replace(" ", "-").replace("'", ""), root / "gap" if labels else None)
        if labels:
            further(context, labels, own.root)
        stage = own.recipe.curriculum.stage_list[-1]
        folder = own.root / stage.name
        folder.mkdir(exist_ok=True)
        train_stage(own, stage, folder)
        gap, after = own.open(GapModel, "gap"), own.open(Improver, stage.name)
        kept: dict[str, Any] = {"gap": gap, "seed": seed, **settings.model_dump()}
        looped = improve_many(prompts, y0, improver=improver, **kept)
        proposed = after.propose(prompts, y0, temperature=recipe.loop.temperature, seed=seed)
        finals = improve_many(prompts, y0, improver=after, **kept)
        figures = {
            "right, clerks' answers": right(gap, held_out),
            "right, round 1": right(gap, changes(versions[0], versions[1])),
            "right, rounds 2 and 3": right(gap, later),
            "right, two proposals": right(gap, changes(drawn[0], drawn[1])),
            "utility, loop": [mean([trace.final for trace in looped])],
            "utility, one round after one more stage": [mean([y.text for y in proposed])],
            "utility, loop after one more stage": [mean([trace.final for trace in finals])],
        }
        found[name] = {figure: {"mean": float(np.mean(own)), "n": len(own)} for figure, own in figures.items()}
        print(f"{root}, {name}: " + ", ".join(f"{k} {v['mean']:.2f}" for k, v in found[name].items()), flush=True)
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """Each figure by R_PIT, and the difference that PIT's own answers make, each with its interval over the runs."""
    rows = ["| figure | " + " | ".join((OLD, DATA, OWN)) + " | own less the data's |", "| --- " * 5 + "|"]

    def cell(values: Sequence[float], sign: str = "") -> str:
        found = mean_interval(values)
        return f"{found.estimate:{sign}.2f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"

    for figure in results[0][OLD]:
        by_name = {name: [result[name][figure]["mean"] for result in results] for name in (OLD, DATA, OWN)}
        differences = [own - data for own, data in zip(by_name[OWN], by_name[DATA], strict=True)]
        cells = [*map(cell, by_name.values()), cell(differences, "+")]
        rows.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="Folders of finished runs of the world.")
    parser.add_argument("--out", type=Path, default=Path("build/refresh"), help="Folder for models and figures.")
    options = parser.parse_args()
    quiet()
    results = []
    for root in options.runs:
        own = options.out / root.parent.name
        stored = own / "result.json"
        if not stored.is_file():
            save(measure(root, own), stored)
        results.append(json.loads(stored.read_text(encoding="utf-8")))
    print(table(results))
    save({"runs": [str(root) for root in options.runs], "results": results}, options.json)


if __name__ == "__main__":
    main()
