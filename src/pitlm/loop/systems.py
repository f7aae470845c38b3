"""Every system of a comparison, on the same prompts and the same first answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pitlm.core.nouns import Answer, Prompt, Trace
from pitlm.core.recipe import LoopSection
from pitlm.io.console import progress_bar
from pitlm.loop.baselines.budget import held_to
from pitlm.loop.baselines.corrector import correct, first_rounds
from pitlm.loop.baselines.sampling import draw, pick, resample
from pitlm.loop.loop import GapScorer, Proposer, improve_many
from pitlm.models.generators import Improver, Policy
from pitlm.models.scorers import GapModel, RewardDifference, RewardModel

PIT = "PIT"
PIT_ONE = "PIT, 1 round, no stop rule"
PIT_DIFFERENCE = "PIT with R_P difference"
SFT = "SFT-only improver"
SFT_LOOP = "SFT-only improver + loop"
RESAMPLE = "resample"
BEST_OF = "best-of-N with R_P"
BEST_OF_GAP = "best-of-N with R_PIT"
BEFORE_RL = "policy before RLHF"
ROUNDS = 3
"""Rounds without stop rule that quality by round is measured over."""


@dataclass
class TrainedModels:
    """What a run has trained, M_P before ordinary RLHF included where there was such a stage."""

    policy: Policy
    improver: Improver
    corrector: Improver
    gap: GapModel
    reward: RewardModel
    policy_before: Policy | None = None


@dataclass
class Systems:
    """Makes each system's traces once.

    Attributes:
        originals: y_0 of each prompt, and what it took.
        temperature: of the policy; that of the improvers is the loop's.
        seed: a seed for each purpose.
        tokens: what each system may generate for each item; None: best-of-N has as many samples as take the tokens
            that PIT takes, and the others take what they take.
    """

    prompts: Sequence[Prompt]
    originals: Sequence[Answer]
    models: TrainedModels
    loop: LoopSection
    temperature: float
    seed: Callable[[str], int]
    tokens: int | None = None

    @cached_property
    def y0(self) -> list[str]:
        return [answer.text for answer in self.originals]

    @cached_property
    def chains(self) -> dict[str, list[Trace]]:
        """Both improvers applied again and again, whatever R_PIT says."""
        return {name: self._correct(name, model) for name, model in self._improvers.items()}

    @cached_property
    def loops(self) -> dict[str, list[Trace]]:
        difference = RewardDifference(self.models.reward)
        return {
            **{name: self._loop(name, model, self.models.gap) for name, model in self._improvers.items()},
            PIT_DIFFERENCE: self._loop(PIT_DIFFERENCE, self.models.improver, difference),
        }

    @cached_property
    def samples(self) -> tuple[float, int]:
        """How many further samples cost what PIT costs, and the whole number of them that best-of-N has."""
        spent = [trace.generated_tokens for trace in self.loops[PIT]]
        wanted = sum(spent) / max(1, len(spent)) / self._answer_tokens
        return wanted, max(1, round(wanted))

    def traces(self) -> dict[str, list[Trace]]:
        """Every system but the original itself, none above the budget where there is one."""
        drawn = self._draw(BEST_OF, self.models.policy, self.samples[1])
        given = {RESAMPLE: resample(self.prompts, self.y0, drawn)}
        if self.models.policy_before is not None:
            before = self._draw(BEFORE_RL, self.models.policy_before, 1)
            given[BEFORE_RL] = resample(self.prompts, self.y0, before)
        given |= {
            BEST_OF: pick(self.prompts, self.y0, drawn, gap=RewardDifference(self.models.reward)),
            BEST_OF_GAP: pick(self.prompts, self.y0, drawn, gap=self.models.gap),
            SFT: [first_rounds(trace, 1) for trace in self.chains[SFT]],
            SFT_LOOP: self.loops[SFT],
            PIT_DIFFERENCE: self.loops[PIT_DIFFERENCE],
            PIT_ONE: [first_rounds(trace, 1) for trace in self.chains[PIT]],
            PIT: self.loops[PIT],
        }
        if self.tokens is None:
            return given
        return {name: [held_to(trace, self.tokens) for trace in own] for name, own in given.items()}

    @property
    def _answer_tokens(self) -> float:
        """What one answer takes on the mean."""
        return sum(answer.generated_tokens for answer in self.originals) / max(1, len(self.originals)) or 1.0

    @property
    def _improvers(self) -> dict[str, Proposer]:
        return {SFT: self.models.corrector, PIT: self.models.improver}

    def _correct(self, name: str, improver: Proposer) -> list[Trace]:
        with progress_bar(f"{name}, {ROUNDS} rounds", ROUNDS * len(self.y0)) as advance:
            return correct(
                self.prompts,
                self.y0,
                improver=improver,
                rounds=ROUNDS,
                temperature=self.loop.temperature,
                seed=self.seed("rounds-0"),
                advance=advance,
            )

    def _loop(self, name: str, improver: Proposer, gap: GapScorer) -> list[Trace]:
        with progress_bar(f"{name}, loop", len(self.prompts)) as advance:
            return improve_many(
                self.prompts,
                self.y0,
                improver=improver,
                gap=gap,
                seed=self.seed("loop"),
                advance=advance,
                **self.loop.model_dump(),
            )

    def _draw(self, name: str, policy: Policy, samples: int) -> list[list[Answer]]:
        """As many samples as are wanted, or, under a budget, as many as it takes to spend it: each has a token."""
        expected = samples
        if self.tokens is not None and name != BEFORE_RL:
            samples, expected = self.tokens, math.ceil(self.tokens / self._answer_tokens)
        with progress_bar(f"{name}, further answers", expected * len(self.prompts)) as advance:
            return draw(
                self.prompts,
                policy=policy,
                samples=samples,
                tokens=self.tokens,
                temperature=self.temperature,
                seed=self.seed("best-of"),
                advance=advance,
            )


def answer_of(trace: Trace) -> Answer:
    """What a system answered in the end, and what all of it cost."""
    return Answer(trace.final, trace.generated_tokens, trace.prompt_tokens)
