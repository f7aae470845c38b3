"""The baselines of pitlm.

Some answer again: resample, the policy before or after RLHF, and the best of N by R_P or by R_PIT. The others rewrite:
the SFT-only improver, and PIT with another scorer, without its stop rule, or on answers of the policy after RLHF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pitlm.core.nouns import Answer, Improvement, Prompt, Round, Trace
from pitlm.loop.baselines.baseline import PIT, PIT_ONE, SFT, Baseline, Work
from pitlm.loop.chains import first_rounds, without_stop_rule
from pitlm.loop.loop import GapScorer

if TYPE_CHECKING:  # the planner reads these declarations without torch
    from pitlm.loop.systems import Systems


def pick(
    prompts: Sequence[Prompt], responses: Sequence[str], drawn: Sequence[Sequence[Answer]], *, gap: GapScorer
) -> list[Trace]:
    """Pick the best among each response and its candidates, by the gap to the response, whose own gap is 0.

    With R_PIT this is best-of-N against the original; with R_P(y) - R_P(y_ref) it is best-of-N with R_P. Each candidate
    is a round of the trace, and is accepted if it is better than the best before it. Its gap is the gain over that
    best.
    """
    asked = [
        Improvement(prompt, response, answer.text)
        for prompt, response, own in zip(prompts, responses, drawn, strict=True)
        for answer in own
    ]
    gaps = iter([float(value) for value in gap.gaps(asked)] if asked else [])
    traces = []
    for prompt, response, own in zip(prompts, responses, drawn, strict=True):
        best, rounds = 0.0, []
        for answer in own:
            value = next(gaps)
            rounds.append(_round(answer, value - best, accepted=value > best))
            best = max(best, value)
        traces.append(without_stop_rule(prompt, response, rounds))
    return traces


def resample(prompts: Sequence[Prompt], responses: Sequence[str], drawn: Sequence[Sequence[Answer]]) -> list[Trace]:
    """The first further answer in place of the response, without a choice. This shows the worth of another draw."""
    return [
        without_stop_rule(prompt, response, [_round(answer, 0.0, accepted=True) for answer in own[:1]])
        for prompt, response, own in zip(prompts, responses, drawn, strict=True)
    ]


def _round(answer: Answer, gap: float, *, accepted: bool) -> Round:
    return Round(answer.text, gap, accepted, tokens=answer.generated_tokens, prompt_tokens=answer.prompt_tokens)


def _drawn_by_other(systems: Systems, title: str) -> list[list[Answer]]:
    """One answer to each prompt, from the policy that is not M_P."""
    assert systems.models.other_policy is not None
    return systems.draw(title, systems.models.other_policy, 1)


def _other_policy(title: str, *, needs: str, compared: bool) -> Baseline:
    """The policy before or after RLHF, whichever is not M_P, as a baseline."""
    return Baseline(
        title,
        lambda systems: resample(systems.prompts, systems.y0, _drawn_by_other(systems, title)),
        work=lambda rounds, samples: Work(answers=1),
        needs=needs,
        compared=compared,
    )


def _pit_after_rlhf(systems: Systems) -> list[Trace]:
    """The loop on answers of the policy after RLHF. In each trace that answer is the first round."""
    drawn = _drawn_by_other(systems, PIT_AFTER_RLHF.title)
    answers = [answer.text for [answer] in drawn]
    traces = systems.improved(PIT_AFTER_RLHF.title, systems.models.improver, systems.models.gap, answers)
    return [
        without_stop_rule(before.prompt, before.original, [*before.rounds, *after.rounds])
        for before, after in zip(resample(systems.prompts, systems.y0, drawn), traces, strict=True)
    ]


RESAMPLE = Baseline(
    "resample", lambda systems: resample(systems.prompts, systems.y0, systems.further), draws=True, compared=False
)
BEFORE_RLHF = _other_policy("policy before RLHF", needs="policy-sft", compared=False)
AFTER_RLHF = _other_policy("policy after RLHF", needs="policy-rl", compared=True)
PIT_AFTER_RLHF = Baseline(
    "PIT on the policy after RLHF",
    _pit_after_rlhf,
    work=lambda rounds, samples: Work(answers=1, proposals=rounds, gaps=rounds),
    needs="policy-rl",
    compared=False,
)
BEST_OF_N = Baseline(
    "best-of-N with R_P",
    lambda systems: pick(systems.prompts, systems.y0, systems.further, gap=systems.reward_difference),
    work=lambda rounds, samples: Work(rewards=1 + samples),
    draws=True,
)
BEST_OF_N_GAP = Baseline(
    "best-of-N with R_PIT",
    lambda systems: pick(systems.prompts, systems.y0, systems.further, gap=systems.models.gap),
    work=lambda rounds, samples: Work(gaps=samples),
    draws=True,
)
SFT_ONCE = Baseline(SFT, lambda systems: [first_rounds(trace, 1) for trace in systems.chains[SFT]])
SFT_LOOP = Baseline(
    f"{SFT} + loop",
    lambda systems: systems.improved(f"{SFT} + loop", systems.models.corrector, systems.models.gap),
    work=lambda rounds, samples: Work(proposals=rounds, gaps=rounds),
)
REWARD_DIFFERENCE = Baseline(
    "PIT with R_P difference",
    lambda systems: systems.improved("PIT with R_P difference", systems.models.improver, systems.reward_difference),
    work=lambda rounds, samples: Work(proposals=rounds, rewards=2 * rounds),
)
ONE_ROUND = Baseline(PIT_ONE, lambda systems: [first_rounds(trace, 1) for trace in systems.chains[PIT]])
