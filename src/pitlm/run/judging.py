"""Judging two files of answers, with the pocket world's truth as one of the judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import VerdictRow
from pitlm.data.answers import read_comparisons
from pitlm.io.console import make_console
from pitlm.judge.judges import JudgeOptions, make_judge, run_judge, spent_on
from pitlm.judge.protocol import Judge
from pitlm.judge.scores import ScoreJudge
from pitlm.worlds import pocket as world


def true_utility(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """The pocket world's hidden utility (points)."""
    return [world.utility(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def judge_answer_files(first: Path, second: Path, options: JudgeOptions) -> list[VerdictRow]:
    """One row for each pair of answers, seen from the first file's system; prints what asking cost.

    Raises:
        InputError: files that cannot be read or paired, options that do not go together, or a judge that cannot be had.
        BudgetSpent: the cost limit was reached before the last reply.
    """
    options.check()
    comparisons = read_comparisons(first, second)
    if options.kind == "oracle":
        for comparison in comparisons:
            _check_pocket(comparison.prompt, first)
        judge: Judge = ScoreJudge("true utility", true_utility)
    else:
        judge = make_judge(options, len(comparisons))
    rows = run_judge(judge, comparisons)
    if spent := spent_on(judge):
        make_console().print(spent, markup=False, highlight=False)
    return rows


def _check_pocket(prompt: Prompt, file: Path) -> None:
    try:
        world.utility(prompt, "")
    except (ValueError, KeyError) as error:
        found, expected = repr(prompt.text[:60]), "prompts of the pocket world, for which alone there is an oracle"
        raise InputError.at(file, found=found, expected=expected) from error
