"""Makes the judge that a user asks for, and lets a judge compare answers."""

from collections.abc import Callable, Sequence

from pitlm.core.errors import BudgetSpent, InputError
from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.verdicts import Comparison, VerdictRow
from pitlm.engines.endpoint import NOT_ASKED
from pitlm.io.console import progress_bar
from pitlm.io.named_parts import find_part
from pitlm.judge.llm import LLMJudge
from pitlm.judge.protocol import GROUP, JUDGES, Judge
from pitlm.judge.scores import GapJudge, ScoreJudge

MODELS = {"llm": "the model's name", "foreign": "a checkpoint", "scripted": "a file of replies"}
ENDPOINT_FIELDS = ("base_url", "template", "price", "max_cost")
CHUNK = 64
"""How many comparisons a judge that computes here is given at a time, so that the progress bar moves."""


def check_section(section: JudgeSection, kind: str, field: Callable[[str], str]) -> None:
    """Refuse fields that do not go together.

    Args:
        kind: how the user named the kind, for the message.
        field: from the name of a field to what the user called it.

    Raises:
        InputError: a missing model, a model that is one too many, or a field of an endpoint beside another kind.
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
    """Every comparison judged, behind a progress bar that shows the cost so far.

    Raises:
        BudgetSpent: the cost limit was reached before the last reply.
        InputError: as the judge does.
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
    return rows


def spent_on(judge: Judge) -> str | None:
    """Calls, cost and replies from the cache in one line; None for a judge that asks no endpoint."""
    if not isinstance(judge, LLMJudge):
        return None
    asked = judge.endpoint
    cost = f", cost {asked.spent:.4f}" if asked.price is not None else ""
    return f"{asked.calls} calls{cost}, {asked.hits} replies from the cache"
