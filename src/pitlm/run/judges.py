"""Makes the judges of a run and of `pit judge`, the truth of a world among them, and lets them compare answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pitlm.core.errors import BudgetSpent, InputError
from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.nouns import Prompt
from pitlm.core.recipe import Recipe
from pitlm.core.verdicts import Comparison, VerdictRow
from pitlm.data.items import read_comparisons
from pitlm.engines.endpoint import NOT_ASKED
from pitlm.io.console import make_console, progress_bar
from pitlm.io.digest import digest
from pitlm.io.named_parts import find_part
from pitlm.io.visible import echo
from pitlm.judge.llm import DEFAULT, LLMJudge
from pitlm.judge.protocol import GROUP, JUDGES, Judge
from pitlm.judge.scores import TRUTH, GapJudge, ScoreJudge
from pitlm.worlds.known import KNOWN

OF_A_RUN = ("truth", "reward")
"""The kinds of judges that a run has without a further model."""
WITHOUT_EFFECT = {"price", "max_cost", "concurrency", "timeout", "cache"}
"""Fields of a judge that change no verdict."""
MODELS = {"llm": "the model's name", "foreign": "a checkpoint", "scripted": "a file of replies"}
ENDPOINT_FIELDS = ("base_url", "template", "price", "max_cost")
CHUNK = 64
"""A judge in this process gets this many comparisons at a time, so that the progress bar moves."""


def truth(world: str) -> ScoreJudge:
    """The judge that knows the hidden utility of a world (points)."""
    return ScoreJudge(TRUTH, lambda prompts, responses: [*map(KNOWN[world].utility, prompts, responses)])


def check_section(section: JudgeSection, kind: str, field: Callable[[str], str]) -> None:
    """Refuse fields that do not go together.

    Args:
        kind: how the user named the kind, for the message.
        field: takes the name of a field, and returns the user's name for it.

    Raises:
        InputError: a missing model, a model for a kind that takes none, or a field of an endpoint beside another kind.
    """
    if section.kind in MODELS and not section.model:
        raise InputError(f"{field('model')}: found nothing, expected {MODELS[section.kind]} for {kind}")
    if section.kind in ("truth", "reward") and section.model:
        raise InputError(f"{field('model')}: found beside {kind}, which needs none")
    for name in ENDPOINT_FIELDS if section.kind in (*MODELS, "truth", "reward") and section.kind != "llm" else ():
        if getattr(section, name) is not None:
            raise InputError(f"{field(name)}: found beside {kind}, expected a judge of the kind llm")


def make_judge(section: JudgeSection, where: str = GROUP) -> Judge:
    """The judge that a section describes.

    Args:
        where: the option or key that names the kind, for error messages.

    Raises:
        InputError: no such kind; or a model, template, price or file that cannot be read.
    """
    judge: Judge = find_part(GROUP, JUDGES, section.kind, where=where)(section)
    return judge


def run_judge(judge: Judge, comparisons: Sequence[Comparison]) -> list[VerdictRow]:
    """Judge every comparison, behind a progress bar that shows the cost so far.

    Raises:
        BudgetSpent: the cost limit was reached before the last reply.
        InputError: as the judge does; or all calls failed.
    """
    endpoint = judge.endpoint if isinstance(judge, LLMJudge) else None
    size = CHUNK if isinstance(judge, ScoreJudge | GapJudge) else max(1, len(comparisons))
    rows: list[VerdictRow] = []
    cost = (lambda: f"cost {endpoint.spent:.4f}") if endpoint is not None and endpoint.price is not None else None
    with progress_bar("judging", len(comparisons), cost) as advance:
        for start in range(0, len(comparisons), size):
            rows += judge.judge(comparisons[start : start + size], advance=advance)
    complete = sum(all(reply.failure != NOT_ASKED for reply in row.replies) for row in rows)
    if endpoint is not None and complete < len(rows):
        kept = f" The replies are kept in {endpoint.cache.path}." if endpoint.cache is not None else ""
        raise BudgetSpent(
            f"the cost limit of {endpoint.max_cost:g} is reached: {complete} of {len(rows)} pairs are judged, "
            f"{endpoint.calls} calls cost {endpoint.spent:.4f}.{kept} Run the same command again to go on; it pays for "
            "none of them twice"
        )
    failures = [reply.failure for row in rows for reply in row.replies if reply.failure]
    if failures and len(failures) == sum(len(row.replies) for row in rows):
        raise InputError(f"found {len(failures)} calls that all failed, expected replies. The first: {failures[0]}")
    if failures:
        echo(f"{judge.name}: {len(failures)} calls failed and count as unparsable. The first: {failures[0]}")
    return rows


def spent_on(judge: Judge) -> str | None:
    """Calls, cost and replies from the cache in one line; None for a judge that asks no endpoint."""
    if not isinstance(judge, LLMJudge):
        return None
    asked = judge.endpoint
    cost = f", cost {asked.spent:.4f}" if asked.price is not None else ""
    return f"{asked.calls} calls{cost}, {asked.hits} replies from the cache"


def judge_answer_files(first: Path, second: Path, section: JudgeSection) -> list[VerdictRow]:
    """One row for each pair of answers, seen from the system of the first file; prints what the calls cost.

    Raises:
        InputError: files that cannot be read or paired, or a judge that cannot be made.
        BudgetSpent: the cost limit was reached before the last reply.
    """
    comparisons = read_comparisons(first, second)
    prompts = [pair.prompt for pair in comparisons]
    judge = _truth_of(first, prompts) if section.kind == "truth" else make_judge(section, "--judge")
    rows = run_judge(judge, comparisons)
    if spent := spent_on(judge):
        make_console().print(spent, highlight=False)
    return rows


def _truth_of(file: Path, prompts: Sequence[Prompt]) -> ScoreJudge:
    """The truth of the one world that all prompts of a file belong to."""
    for name, world in KNOWN.items():
        if all(map(world.asks, prompts)):
            return truth(name)
    strange = next((x for x in prompts if not any(world.asks(x) for world in KNOWN.values())), prompts[0])
    expected = f"prompts of one world with a known truth: {', '.join(KNOWN)}"
    raise InputError.at(file, found=repr(strange.text[:60]), expected=expected)


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
        own = "truth" if recipe.data.world else "reward"
        if section.kind in OF_A_RUN and section.kind != own:
            where = "on data with a known truth" if own == "truth" else "on data without a known truth"
            raise InputError(f"{key}.kind: found '{section.kind}', expected '{own}' {where}")
        name = section.model or section.kind
        if section.kind not in OF_A_RUN:
            find_part(GROUP, {**JUDGES, **dict.fromkeys(OF_A_RUN, "")}, section.kind, where=f"{key}.kind")
            try:
                if section.kind == "foreign":  # without loading its weights
                    from pitlm.models.foreign import check_reward_model

                    check_reward_model(section.model or "")
                else:
                    name = make_judge(section.model_copy(update={"cache": None})).name
            except InputError as error:
                raise InputError(f"{key}: {error}") from error
        if name in seen:
            raise InputError(f"{key}: found a second judge called '{name}', expected judges of different names")
        seen.add(name)


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
