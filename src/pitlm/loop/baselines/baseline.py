"""What a baseline is, and which baselines there are.

A new baseline is a module beside this one and a line in :data:`BASELINES`. Another package adds a baseline with an
entry point of the group ``pitlm.baselines``; a recipe names it in ``evaluation.baselines``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pitlm.core.errors import InputError
from pitlm.core.nouns import Advance, Answer, Prompt, Trace
from pitlm.core.packaged_recipes import find_packaged
from pitlm.core.recipe import Recipe
from pitlm.io.console import progress_bar
from pitlm.io.named_parts import find_part
from pitlm.loop.baselines.guide import PROMPTS, Guide
from pitlm.loop.baselines.self_refine import self_refine
from pitlm.loop.calibration import Promise
from pitlm.loop.chains import play

if TYPE_CHECKING:
    from pitlm.engines.generators import Policy
    from pitlm.loop.systems import Systems

BASELINES = {
    "resample": "pitlm.loop.baselines.own_baselines:RESAMPLE",
    "before-rlhf": "pitlm.loop.baselines.own_baselines:BEFORE_RLHF",
    "after-rlhf": "pitlm.loop.baselines.own_baselines:AFTER_RLHF",
    "pit-after-rlhf": "pitlm.loop.baselines.own_baselines:PIT_AFTER_RLHF",
    "best-of-n": "pitlm.loop.baselines.own_baselines:BEST_OF_N",
    "best-of-n-gap": "pitlm.loop.baselines.own_baselines:BEST_OF_N_GAP",
    "sft": "pitlm.loop.baselines.own_baselines:SFT_ONCE",
    "sft-loop": "pitlm.loop.baselines.own_baselines:SFT_LOOP",
    "reward-difference": "pitlm.loop.baselines.own_baselines:REWARD_DIFFERENCE",
    "one-round": "pitlm.loop.baselines.own_baselines:ONE_ROUND",
}
"""The baselines of pitlm, in the order of the tables: the name in a recipe, and the place of the :class:`Baseline`."""

ORIGINAL, PIT = "original", "PIT"
"""Names in tables of the two systems that are no baselines."""

SFT, PIT_ONE = "SFT-only improver", "PIT, 1 round, no stop rule"
"""Names in tables of two baselines. A report shows the gaps of these two beside the gaps of PIT."""

DPO_STAGE = "improver-dpo"
"""The stage that trains an improver by DPO, for a baseline."""

CHAIN_ROUNDS = 3
"""The evaluation shows quality by round over this many rounds without a stop rule, of the SFT-only improver and PIT."""


class Work(NamedTuple):
    """The work of the models for one system and one item.

    Attributes:
        answers: answers of the policy.
        proposals: proposals of an improver.
        gaps: gap scores of R_PIT.
        rewards: scores of R_P.
    """

    answers: float = 0
    proposals: float = 0
    gaps: float = 0
    rewards: float = 0


@dataclass(frozen=True, slots=True)
class Baseline:
    """A system that PIT is compared with.

    Attributes:
        title: name in tables.
        traces: makes one trace for each prompt. It returns traces and not answers, because the rounds of a trace say
            what each step cost. So every system can be held to one budget of tokens.
        work: work for each item, from the mean rounds of a loop and the samples of best-of-N; `pit doctor` reads it.
        draws: whether it uses :attr:`Systems.further`, the further answers that are drawn once for all systems.
        needs: name of the stage that trains the policy of this baseline, if that policy is not M_P. Without this stage
            the baseline takes no part.
        compared: whether reports show the Delta of PIT minus the Delta of this baseline.
    """

    title: str
    traces: Callable[[Systems], list[Trace]]
    work: Callable[[float, int], Work] = lambda rounds, samples: Work()
    draws: bool = False
    needs: str | None = None
    compared: bool = True


def chosen_baselines(recipe: Recipe) -> list[Baseline]:
    """The baselines that the recipe names, in its order. If it names none: all baselines of pitlm that apply to it.

    Raises:
        InputError: an unknown name, a baseline whose section the recipe lacks, or two systems with one title.
    """
    named = recipe.evaluation.baselines
    chosen = []
    for name in BASELINES if named is None else named:
        baseline = find_part("pitlm.baselines", BASELINES, name, where="evaluation.baselines")
        if baseline.needs not in (None, recipe.other_policy_stage):
            if named is None:
                continue
            wanted = "policy_rl" + (", and model.policy 'sft'" if baseline.needs == "policy-rl" else "")
            raise InputError(f"evaluation.baselines: found '{name}', which needs the section {wanted}")
        chosen.append(baseline)
    if named is None:
        chosen += [one_round_of(f"PIT after stage {s.number}", s.name) for s in recipe.curriculum.stage_list[:-1]]
    if recipe.improver_dpo is not None:
        chosen.append(one_round_of("DPO improver", DPO_STAGE, compared=True))
    if recipe.evaluation.harm is not None:
        chosen.append(with_margin_for(recipe.evaluation.harm))
    chosen += map(refined_by, recipe.evaluation.self_refine)
    titles = Counter([ORIGINAL, PIT, *(baseline.title for baseline in chosen)])
    if twice := [title for title, count in titles.items() if count > 1]:
        raise InputError(f"evaluation: found two systems called '{twice[0]}', expected one")
    return chosen


def one_round_of(name: str, stage: str, *, compared: bool = False) -> Baseline:
    """One round of the improver that another stage made."""

    def traces(systems: Systems) -> list[Trace]:
        assert systems.open_improver is not None
        return systems.chain(title, systems.open_improver(stage), 1)

    title = f"{name}, 1 round"
    return Baseline(title, traces, work=lambda rounds, samples: Work(proposals=1), compared=compared)


def with_margin_for(harm: float) -> Baseline:
    """PIT with the margin that is chosen on further answers, so that at most this share of answers is made worse."""

    def traces(systems: Systems) -> list[Trace]:
        from pitlm.loop.margin import Chains  # here, because planning needs no scipy

        assert systems.open_quality is not None
        assert systems.choosing is not None
        improver, gap, seed = systems.models.improver, systems.models.gap, systems.seed("calibration")
        played = play({title: gap}, [systems.choosing()], improver=improver, settings=systems.loop, seed=seed)
        [always] = played[title]
        chosen = Chains.of(always, systems.open_quality()).choose(harm, Promise().confidence)
        return systems.improved(title, improver, gap, margin=chosen.margin)

    title = f"PIT, margin for {harm:.0%} harm"
    return Baseline(title, traces, work=lambda rounds, samples: Work(1, 2 * rounds, gaps=2 * rounds), compared=False)


@dataclass(frozen=True, slots=True)
class Watched:
    """A policy that moves a progress bar while it answers, and leaves out conversations that its window cannot hold."""

    policy: Policy
    advance: Advance

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seed: int) -> list[Answer | None]:
        fits = [self._fits(prompt) for prompt in prompts]
        self.advance(fits.count(False))
        fitting = list(compress(prompts, fits))
        answers = iter(self.policy.answer(fitting, temperature=temperature, seed=seed, advance=self.advance))
        return [next(answers) if fit else None for fit in fits]

    def _fits(self, prompt: Prompt) -> bool:
        try:
            self.policy.encode(prompt)
        except InputError:
            return False
        return True


def guide_file(name: str) -> Path:
    """The file of Self-Refine's prompts that a recipe names: packaged prompts, or a path.

    Raises:
        InputError: no such file.
    """
    return find_packaged(name, PROMPTS, "file of prompts (evaluation.self_refine)")


def refined_by(guide: str) -> Baseline:
    """Self-Refine by the start model. ``guide`` is a file of prompts, or the name of packaged prompts."""

    def traces(systems: Systems) -> list[Trace]:
        prompts, rounds = systems.prompts, read.rounds or systems.loop.rounds
        with progress_bar(f"{title}, at most", asked * rounds * len(prompts)) as advance:
            chat = Watched(systems.start_model, advance)
            refine = partial(self_refine, guide=read, rounds=rounds, temperature=read.temperature)
            return refine(prompts, systems.y0, chat=chat, seed=systems.seed("self-refine"))

    title = f"Self-Refine: {Path(guide).stem}"
    read = Guide.load(guide_file(guide))
    asked = len(read.questions) * (1 if read.feedback is None else 2)
    return Baseline(title, traces, work=lambda rounds, samples: Work(answers=asked * (read.rounds or rounds)))


def work_per_item(baselines: Sequence[Baseline], rounds: float) -> Work:
    """The work of the models for PIT and the baselines on one item, with the item's first answer.

    Args:
        rounds: mean rounds of a loop; best-of-N draws this number of samples, rounded.
    """
    samples = max(1, round(rounds))
    draws = samples if any(baseline.draws for baseline in baselines) else 0
    shared = Work(answers=1 + draws, proposals=rounds + 2 * CHAIN_ROUNDS, gaps=rounds)
    return Work(*map(sum, zip(shared, *(baseline.work(rounds, samples) for baseline in baselines), strict=True)))
