"""The evaluation of a run: each system answers the held-out prompts, and each judge compares it with the original."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError, Stopped
from pitlm.core.nouns import Answer, Improvement, Prompt
from pitlm.core.verdicts import Comparison, Verdict, VerdictRow
from pitlm.data.folds import unique_prompts
from pitlm.engines.generators import Improver, Policy
from pitlm.evaluate.answer_figures import Measures, item_rows
from pitlm.evaluate.statistics import mean_interval, share
from pitlm.io.atomic import write_json_lines
from pitlm.io.console import progress_bar
from pitlm.judge.protocol import Judge
from pitlm.judge.scores import GapJudge, ScoreJudge
from pitlm.loop.baselines.baseline import ORIGINAL, PIT, PIT_ONE, SFT, chosen_baselines
from pitlm.loop.chains import incumbents
from pitlm.loop.systems import Systems, TrainedModels, answer_of, comparisons
from pitlm.models.adapters import Bases
from pitlm.models.scorers import GapModel, RewardModel
from pitlm.run.calibrate import answers_to_choose_on
from pitlm.run.context import Context
from pitlm.run.judges import OF_A_RUN, make_judge, run_judge
from pitlm.worlds.known import KNOWN

REPLIES = "judge-replies.sqlite"
"""The file of all judges' replies in a run, outside all stages: a new evaluation pays for no reply twice."""


def evaluate(context: Context, folder: Path) -> dict[str, Any]:
    """Let every system answer, and every judge judge.

    The function writes three files: ``verdicts.jsonl`` with rows as `pit judge` writes them, ``items.jsonl`` with all
    answers and their tokens, and ``traces.jsonl`` with the rounds of PIT's loop on each answer. The result holds only
    figures that cannot be computed from these files.

    Raises:
        BudgetSpent: a judge's cost limit was reached; the replies so far are kept, and the same command goes on.
        InputError: a judge cannot be made.
        Stopped: a judge cannot be asked, or not about these answers; the answers are kept.
    """
    baselines, section, bases = chosen_baselines(context.recipe), context.recipe.evaluation, context.bases()
    systems = _systems(context, folder / "systems", bases)
    judges = judges_of(context, bases)
    traces = systems.traces(baselines)
    answers = {ORIGINAL: [Answer(text) for text in systems.y0]}
    answers |= {name: [answer_of(trace) for trace in own] for name, own in traces.items()}
    compared = against_original(systems.prompts, answers)
    labels = [Comparison(pair.prompt, pair.chosen, pair.rejected) for pair in context.folds["test"]]
    rows, agreement = list[VerdictRow](), dict[str, Any]()
    for judge in judges:
        # A judge that is asked in words gets fewer labels, because each reply may cost money.
        asked = labels if isinstance(judge, ScoreJudge | GapJudge) else labels[: section.items]
        try:
            judged = run_judge(judge, [*compared, *asked])
        except InputError as error:  # for which the folder would be removed, with the answers of all systems
            raise Stopped(f"{judge.name}: {error}") from error
        rows += judged[: len(compared)]
        decided = [row.verdict for row in judged[len(compared) :] if row.verdict in (Verdict.WIN, Verdict.LOSS)]
        agreement[judge.name] = {**share([verdict is Verdict.WIN for verdict in decided]), "pairs": len(asked)}
    write_json_lines(folder / "verdicts.jsonl", [row.as_dict() for row in rows])
    further = _further(context, systems, answers)
    items = item_rows(systems.prompts, answers, lambda text: len(context.tokenizer.encode(text)), **further)
    write_json_lines(folder / "items.jsonl", items)
    write_json_lines(folder / "traces.jsonl", [trace.as_dict() for trace in traces[PIT]])
    result = {
        "judges": agreement,
        "compared": comparisons(baselines),
        "tokens": systems.tokens,
        "best_of_samples": systems.samples[1],
        "best_of_tokens_wanted": systems.samples[0],
        "quality_by_round": _quality_by_round(systems, judges),
        "gaps": {name: _gaps(systems, answers[name]) for name in (SFT, PIT_ONE, PIT) if name in answers},
    }
    shutil.rmtree(folder / "systems")
    return result


def judges_of(context: Context, bases: Bases) -> list[Judge]:
    """The judges that the recipe of a run names, ready to use; the first gives the headline.

    By default the judge of :meth:`Context.judge`. Replies of language models are kept in a file of the run. Hand
    :func:`run_judge` all comparisons at once: then a scripted judge can count its replies.

    Raises:
        InputError: a model, template, price or file that cannot be read.
    """
    sections = context.recipe.evaluation.judges
    if sections is None:
        return [context.judge(bases)]
    kept = [s.model_copy(update={"cache": s.cache or context.root / REPLIES}) for s in sections]
    return [context.judge(bases) if s.kind in OF_A_RUN else make_judge(s) for s in kept]


def _systems(context: Context, folder: Path, bases: Bases) -> Systems:
    """The systems of the comparison, with held-out prompts and the original answers to them."""
    recipe, section = context.recipe, context.recipe.evaluation
    other = recipe.other_policy_stage
    policy, rival = context.open(Policy, recipe.policy_stage, bases), other and context.open(Policy, other, bases)
    improver, corrector = (context.open(Improver, name, bases) for name in (recipe.improver_stage, "improver-sft"))
    gap, reward = context.open(GapModel, "gap", bases), context.open(RewardModel, "reward", bases)
    models = TrainedModels(policy, improver, corrector, gap, reward, rival or None)
    prompts = unique_prompts(context.folds["test"])[: section.items]
    temperature = section.policy_temperature
    with progress_bar("original answers", len(prompts)) as advance:
        seed = context.seed("original")
        originals = models.policy.answer(prompts, temperature=temperature, seed=seed, advance=advance)
    # The start model may write feedback as long as two answers.
    start = partial(context.start_model, 2 * context.card("policy").max_new_tokens, bases)
    opened = start, partial(context.open, Improver, bases=bases), partial(context.quality, bases)
    loop = recipe.loop.model_copy(update={"seconds": None})  # a batch takes longer than one answer, which this limits
    given = prompts, originals, models, loop, temperature, context.seed, section.tokens
    return Systems(*given, *opened, partial(answers_to_choose_on, context, models.policy), folder)


def against_original(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]]) -> list[Comparison]:
    """Item by item, the answer of each system beside the original answer.

    Args:
        answers: one answer per prompt and system; ``original`` must be among the systems.
    """
    systems = {name: own for name, own in answers.items() if name != ORIGINAL}
    return [
        Comparison(prompt, mine.text, original.text, f"{item:05d}", (name, ORIGINAL))
        for item, (prompt, original, *row) in enumerate(zip(prompts, answers[ORIGINAL], *systems.values(), strict=True))
        for name, mine in zip(systems, row, strict=True)
    ]


def _further(context: Context, systems: Systems, answers: Mapping[str, Sequence[Answer]]) -> dict[str, Measures]:
    """Further measures of every answer, if they exist: the criteria of the world, and the start model's likelihood."""
    texts = {name: [answer.text for answer in own] for name, own in answers.items()}
    found: dict[str, Measures] = {}
    if (world := context.recipe.data.world) is not None:
        criteria = KNOWN[world].criteria
        found["criteria"] = {name: [*map(dict, map(criteria, systems.prompts, own))] for name, own in texts.items()}
    if context.recipe.model.base is not None:
        found["likelihoods"] = told = dict[str, Any]()
        with progress_bar("perplexity", len(texts)) as advance:
            for name, own in texts.items():
                told[name] = systems.start_model.likelihoods(systems.prompts, own)
                advance(1)
    return found


def _quality_by_round(systems: Systems, judges: Sequence[Judge]) -> dict[str, Any]:
    """Mean quality after each round without a stop rule, by the first judge that gives scores; empty without one."""
    judge = next((judge for judge in judges if isinstance(judge, ScoreJudge)), None)
    if judge is None:
        return {}
    means: dict[str, list[list[float]]] = {name: [] for name in systems.chains}
    for name, chain in systems.chains.items():
        for texts in zip(*map(incumbents, chain), strict=True):
            mean = mean_interval(judge.score(systems.prompts, list(texts)))
            means[name].append([mean.estimate, mean.low, mean.high])
    return {judge.name: means}


def _gaps(systems: Systems, answers: Sequence[Answer]) -> list[float]:
    items = [Improvement(x, y0, y.text) for x, y0, y in zip(systems.prompts, systems.y0, answers, strict=True)]
    return [round(value, 4) for value in systems.models.gap.gaps(items).tolist()]
