"""From what a user asks for to a judge, and from a judge to rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pitlm.core.errors import BudgetSpent, InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.core.verdicts import Comparison, VerdictRow
from pitlm.engines.endpoint import NOT_ASKED, ChatEndpoint
from pitlm.engines.prices import Price
from pitlm.engines.reply_cache import ReplyCache
from pitlm.io.console import progress_bar
from pitlm.judge.judge_prompt import DEFAULT, JudgePrompt
from pitlm.judge.llm import LLMJudge
from pitlm.judge.protocol import Judge
from pitlm.judge.scores import GapJudge, ScoreJudge
from pitlm.judge.scripted import ScriptedJudge

Kind = Literal["llm", "reward", "oracle", "scripted"]
CHUNK = 64
"""Comparisons at once for a judge that computes here, so that the bar moves."""


@dataclass(frozen=True)
class JudgeOptions:
    """Which judge, and how it is asked; the fields are the options of `pit judge`.

    Attributes:
        kind: ``llm``, ``reward``, ``oracle`` or ``scripted``.
        model: the name at the endpoint, a checkpoint, or a file of scripted replies.
        price: ``in,cached,out`` for a million tokens, or a JSON file of such prices by model.
        cache: where replies are kept; None keeps none.
        retry_unparsable: how many more times an unparsable reply is asked for.
    """

    kind: Kind
    model: str | None = None
    base_url: str | None = None
    template: Path | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    judge_seed: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    price: str | None = None
    max_cost: float | None = None
    concurrency: int = 8
    timeout: float = 120.0
    cache: Path | None = None
    retry_unparsable: int = 0

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            InputError: no model where one is needed, or the other way round, or an endpoint's option without one.
        """
        if self.kind != "oracle" and not self.model:
            expected = {"llm": "the model's name", "reward": "a checkpoint", "scripted": "a file of replies"}[self.kind]
            raise InputError(f"--model: found nothing, expected {expected} for --judge {self.kind}")
        if self.kind == "oracle" and self.model:
            raise InputError("--model: found beside --judge oracle, which is the pocket world's own utility")
        for name in ("base_url", "template", "price", "max_cost"):
            if self.kind != "llm" and getattr(self, name) is not None:
                raise InputError(f"--{name.replace('_', '-')}: found beside --judge {self.kind}, expected --judge llm")


def make_judge(options: JudgeOptions, pairs: int) -> Judge:
    """The judge that the options describe; all but the oracle, which only the pipeline knows.

    Raises:
        InputError: options that do not go together, or a model, template, price or file that cannot be read.
    """
    options.check()
    model = options.model or ""
    if options.kind == "scripted":
        return ScriptedJudge.from_file(Path(model), pairs)
    if options.kind == "reward":
        return checkpoint_judge(model)
    price = Price.of(options.price, model) if options.price is not None else None
    template = JudgePrompt(options.template or DEFAULT)
    endpoint = ChatEndpoint(
        model,
        options.base_url,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=options.judge_seed,
        body=options.body,
        timeout=options.timeout,
        concurrency=options.concurrency,
        price=price,
        max_cost=options.max_cost,
        cache=ReplyCache(options.cache) if options.cache is not None else None,
    )
    return LLMJudge(endpoint, template, options.retry_unparsable)


def checkpoint_judge(path: str) -> Judge:
    """R_P, R_PIT or anybody's reward model: what a checkpoint is, its ``pit.json`` says, where it has one.

    Raises:
        InputError: nothing that scores answers there.
    """
    # Here, because whoever asks an endpoint needs neither torch nor the seconds that it takes.
    from pitlm.models.foreign import ForeignRewardModel
    from pitlm.models.loading import Card, quiet
    from pitlm.models.scorers import GapModel, RewardModel

    quiet()
    card = Card.load(path)
    if card is not None and card.kind == "gap":
        model = GapModel.from_pretrained(path)

        def gap(items: Sequence[Improvement]) -> list[float]:
            return [float(value) for value in model.gaps(items)]

        return GapJudge(path, gap)
    reward = RewardModel.from_pretrained(path) if card is not None else ForeignRewardModel.from_pretrained(path)

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [float(value) for value in reward.scores(prompts, responses)]

    return ScoreJudge(path, score)


def run_judge(judge: Judge, comparisons: Sequence[Comparison]) -> list[VerdictRow]:
    """Every comparison judged, behind a progress bar that shows what it has cost so far.

    Raises:
        BudgetSpent: the cost limit was reached before the last reply.
        InputError: as the judge does.
    """
    endpoint = judge.endpoint if isinstance(judge, LLMJudge) else None
    size = len(comparisons) if endpoint is not None else CHUNK
    rows: list[VerdictRow] = []
    with progress_bar("judging", len(comparisons), _cost_of(endpoint)) as advance:
        for start in range(0, len(comparisons), size):
            rows += judge.judge(comparisons[start : start + size], advance=advance)
    if endpoint is not None and endpoint.stopped:
        complete = sum(all(reply.failure != NOT_ASKED for reply in row.replies) for row in rows)
        kept = f" The replies are kept in {endpoint.cache.path}." if endpoint.cache is not None else ""
        raise BudgetSpent(
            f"the cost limit of {endpoint.max_cost:g} is reached: {complete} of {len(rows)} pairs are judged, "
            f"{endpoint.calls} calls cost {endpoint.spent:.4f}.{kept} Run the same command again to go on; it pays for "
            "none of them twice"
        )
    return rows


def _cost_of(endpoint: ChatEndpoint | None) -> Callable[[], str] | None:
    if endpoint is None or endpoint.price is None:
        return None
    return lambda: f"cost {endpoint.spent:.4f}"


def spent_on(judge: Judge) -> str | None:
    """What asking took, in one line; None for a judge that asks nobody."""
    if not isinstance(judge, LLMJudge):
        return None
    asked = judge.endpoint
    cost = f", cost {asked.spent:.4f}" if asked.price is not None else ""
    return f"{asked.calls} calls{cost}, {asked.hits} replies from the cache"


def rows_as_lines(rows: Sequence[VerdictRow]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row.as_dict(), ensure_ascii=False) + "\n" for row in rows)
