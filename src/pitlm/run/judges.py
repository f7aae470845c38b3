"""The judges of a run and of `pit judge`: those of the recipe, with the pocket world's truth among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pitlm.core.errors import InputError
from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.recipe import Recipe
from pitlm.core.verdicts import VerdictRow
from pitlm.data.items import read_comparisons
from pitlm.io.console import make_console
from pitlm.io.digest import digest
from pitlm.io.named_parts import find_part
from pitlm.judge.llm import DEFAULT
from pitlm.judge.make_judge import check_section, make_judge, run_judge, spent_on
from pitlm.judge.protocol import GROUP, JUDGES, Judge
from pitlm.judge.scores import ScoreJudge
from pitlm.worlds import pocket as world

if TYPE_CHECKING:
    from pitlm.models.adapters import Bases
    from pitlm.run.context import Context

OF_A_RUN = ("truth", "reward")
"""The kinds of judges that a run has without a further model."""
REPLIES = "judge-replies.sqlite"
"""Where a run keeps replies: outside its stages, so that an evaluation that is made again pays for nothing twice."""
WITHOUT_EFFECT = {"price", "max_cost", "concurrency", "timeout", "cache"}
"""Fields of a judge that change no verdict."""


def truth() -> ScoreJudge:
    """The judge that knows the hidden utility of the pocket world (points)."""
    return ScoreJudge("true utility", lambda prompts, responses: [*map(world.utility, prompts, responses)])


def judge_answer_files(first: Path, second: Path, section: JudgeSection) -> list[VerdictRow]:
    """One row for each pair of answers, seen from the system of the first file; prints what the calls cost.

    Raises:
        InputError: files that cannot be read or paired, or a judge that cannot be made.
        BudgetSpent: the cost limit was reached before the last reply.
    """
    comparisons = read_comparisons(first, second)
    judge = truth() if section.kind == "truth" else make_judge(section, "--judge")
    for prompt in [pair.prompt for pair in comparisons] if section.kind == "truth" else ():
        try:
            world.utility(prompt, "")
        except (ValueError, KeyError) as error:
            expected = "prompts of the pocket world, for which alone there is an oracle"
            raise InputError.at(first, found=repr(prompt.text[:60]), expected=expected) from error
    rows = run_judge(judge, comparisons)
    if spent := spent_on(judge):
        make_console().print(spent, markup=False, highlight=False)
    return rows


def judges_of(context: Context, bases: Bases) -> list[Judge]:
    """The judges that the recipe of a run names, ready to use; the first gives the headline.

    By default the judge of :meth:`Context.judge`. Replies of language models are kept in a file of the run. Hand
    :func:`pitlm.judge.make_judge.run_judge` all comparisons at once: then a scripted judge can count its replies.

    Raises:
        InputError: a model, template, price or file that cannot be read.
    """
    sections = context.recipe.evaluation.judges
    if sections is None:
        return [context.judge(bases)]
    kept = [s.model_copy(update={"cache": s.cache or context.root / REPLIES}) for s in sections]
    return [context.judge(bases) if s.kind in OF_A_RUN else make_judge(s) for s in kept]


def check_judges(recipe: Recipe) -> None:
    """Check that the judges of the recipe can be made, before anything is spent.

    Raises:
        InputError: no such kind, a judge that this run cannot have, fields that do not go together, a key, template,
            price, file or model that is missing, or two judges of one name.
    """
    seen: set[str] = set()
    for index, section in enumerate(recipe.evaluation.judges or ()):
        key = f"evaluation.judges.{index}"
        check_section(section, f"kind {section.kind}", lambda field, key=key: f"{key}.{field}")  # type: ignore[misc]
        own = "truth" if recipe.data.pocket else "reward"
        if section.kind in OF_A_RUN and section.kind != own:
            where = "in the pocket world" if own == "truth" else "on data without a known truth"
            raise InputError(f"{key}.kind: found '{section.kind}', expected '{own}' {where}")
        name = section.model or section.kind
        if name in seen:
            raise InputError(f"{key}: found a second judge called '{name}', expected judges of different names")
        seen.add(name)
        if section.kind in OF_A_RUN:
            continue
        find_part(GROUP, {**JUDGES, **dict.fromkeys(OF_A_RUN, "")}, section.kind, where=f"{key}.kind")
        try:
            # The weights of a model are not loaded, and the file of replies is not opened.
            if section.kind == "foreign":
                from pitlm.models.foreign import check_reward_model

                check_reward_model(section.model or "")
            else:
                make_judge(section.model_copy(update={"cache": None}))
        except InputError as error:
            raise InputError(f"{key}: {error}") from error


def judge_settings(sections: Sequence[JudgeSection] | None) -> dict[str, Any]:
    """The settings that change a verdict, with digests of files in place of their paths."""
    if sections is None:
        return {}
    settings = []
    for section in sections:
        named = section.model_dump(mode="json", exclude=WITHOUT_EFFECT)
        if section.kind == "llm":
            named["template"] = digest(section.template or DEFAULT)
        elif section.kind in ("foreign", "scripted"):
            named["model"] = digest(section.model, sample=True) or section.model
        settings.append(named)
    return {"judges": settings}
