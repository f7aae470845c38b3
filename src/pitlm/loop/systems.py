"""The systems of a comparison: PIT and its baselines, on the same prompts and the same first answers."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import quote

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt, Score, Trace
from pitlm.engines.generators import Improver, Policy
from pitlm.io.atomic import read_json_lines, write_json_lines
from pitlm.io.console import progress_bar
from pitlm.loop.baselines.baseline import CHAIN_ROUNDS, PIT, PIT_ONE, SFT, Baseline
from pitlm.loop.chains import Unmeasured, always_accept, held_to
from pitlm.loop.loop import GapScorer, Proposer, improve_many
from pitlm.models.scorers import GapModel, RewardDifference, RewardModel


@dataclass
class TrainedModels:
    """The models that a run has trained.

    Attributes:
        corrector: the SFT-only improver.
        other_policy: the policy before or after ordinary RLHF, whichever is not M_P.
    """

    policy: Policy
    improver: Improver
    corrector: Improver
    gap: GapModel
    reward: RewardModel
    other_policy: Policy | None = None


@dataclass
class Systems:
    """Inputs, models and traces that the systems of a comparison share. Each trace is made once.

    Attributes:
        originals: y_0 of each prompt, with its cost.
        temperature: sampling temperature of the policy; the improvers sample at the temperature of ``loop``.
        seed: returns the seed for a purpose.
        tokens: tokens that each system may generate for an item. None: best-of-N draws as many samples as cost the
            same tokens as PIT, and the other systems have no limit.
        open_start: opens the model that policy and improver start from, before any training.
        open_improver: opens the improver that a stage made, by the stage's name.
        open_quality: opens the judge that says which answers a calibration finds worse.
        choosing: makes further answers, to choose a margin on.
        folder: keeps the traces of each system that is done, so that a comparison that was interrupted can go on.
    """

    prompts: Sequence[Prompt]
    originals: Sequence[Answer]
    models: TrainedModels
    loop: LoopSection
    temperature: float
    seed: Callable[[str], int]
    tokens: int | None = None
    open_start: Callable[[], Policy] | None = None
    open_improver: Callable[[str], Improver] | None = None
    open_quality: Callable[[], Score] | None = None
    choosing: Callable[[], Sequence[tuple[Prompt, str]]] | None = None
    folder: Path | None = None

    @cached_property
    def start_model(self) -> Policy:
        """The model that policy and improver start from."""
        assert self.open_start is not None
        return self.open_start()

    @cached_property
    def y0(self) -> list[str]:
        return [answer.text for answer in self.originals]

    @cached_property
    def reward_difference(self) -> RewardDifference:
        """R_P(x, y) - R_P(x, y_ref), in place of R_PIT."""
        return RewardDifference(self.models.reward)

    @cached_property
    def pit(self) -> list[Trace]:
        """PIT: M_PIT in the loop, with R_PIT as the stop rule."""
        return self.kept(PIT, lambda: self.improved(PIT, self.models.improver, self.models.gap))

    @cached_property
    def chains(self) -> dict[str, list[Trace]]:
        """The SFT-only improver and M_PIT, each applied again and again without a stop rule."""
        return {
            title: self.kept(f"{title}, rounds", partial(self.chain, title, improver, CHAIN_ROUNDS))
            for title, improver in ((SFT, self.models.corrector), (PIT, self.models.improver))
        }

    def chain(self, title: str, improver: Proposer, rounds: int) -> list[Trace]:
        """An improver applied again and again without a stop rule."""
        settings = self.loop.model_copy(update={"rounds": rounds, "proposals": 1})
        answers, seed = list(zip(self.prompts, self.y0, strict=True)), self.seed("rounds-0")
        with progress_bar(f"{title}, rounds: {rounds}", rounds * len(answers)) as advance:
            how = partial(always_accept, improver=improver, gap=Unmeasured(), settings=settings)
            return how(answers, seed=seed, advance=advance)

    @cached_property
    def samples(self) -> tuple[float, int]:
        """The number of samples that cost the same tokens as PIT, and the whole number that best-of-N draws."""
        spent = [trace.generated_tokens for trace in self.pit]
        wanted = sum(spent) / max(1, len(spent)) / self._answer_tokens
        return wanted, max(1, round(wanted))

    @cached_property
    def further(self) -> list[list[Answer]]:
        """Further answers of the policy to each prompt: as many as :attr:`samples` says, or as the budget allows."""
        expected = self.samples[1]
        if self.tokens is not None:
            expected = math.ceil(self.tokens / self._answer_tokens)
        # An answer has at least one token, so nobody draws more samples than there are tokens.
        return self.draw("further answers", self.models.policy, self.tokens or expected, expected)

    def traces(self, baselines: Sequence[Baseline]) -> dict[str, list[Trace]]:
        """The traces of each baseline and of PIT, by title; none is above the budget, if there is a budget."""
        made = {baseline.title: self.kept(baseline.title, partial(baseline.traces, self)) for baseline in baselines}
        given = {**made, PIT: self.pit}
        if self.tokens is None:
            return given
        return {name: [held_to(trace, self.tokens) for trace in own] for name, own in given.items()}

    def kept(self, name: str, make: Callable[[], list[Trace]]) -> list[Trace]:
        """The traces that the folder has under this name; if it has none, ``make`` makes them, and they are stored."""
        if self.folder is None:
            return make()
        path = self.folder / f"{quote(name, safe=' ,')}.jsonl"
        if not path.is_file():
            write_json_lines(path, [trace.as_dict() for trace in make()])
        return read_json_lines(path, Trace.from_dict)

    def improved(
        self,
        title: str,
        improver: Proposer,
        gap: GapScorer,
        answers: Sequence[str] | None = None,
        margin: float | None = None,
    ) -> list[Trace]:
        """The loop of the run on every answer, by default the first one, with this improver and this scorer.

        Args:
            margin: replaces that of the run; with an infinite one the loop rejects every proposal.
        """
        with progress_bar(f"{title}, loop", len(self.prompts)) as advance:
            # A margin that `pit calibrate` stored beside R_PIT is none of the run's settings.
            chosen = (self.loop.margin or 0.0) if margin is None else min(margin, sys.float_info.max)
            settings, seed = {**self.loop.model_dump(), "margin": chosen}, self.seed("loop")
            return improve_many(
                self.prompts, answers or self.y0, improver=improver, gap=gap, seed=seed, advance=advance, **settings
            )

    def draw(self, title: str, policy: Policy, samples: int, expected: int | None = None) -> list[list[Answer]]:
        """Up to ``samples`` further answers to each prompt, and none after the budget of tokens is spent.

        Args:
            expected: samples that the progress bar expects, if not ``samples``.
        """
        with progress_bar(title, (expected or samples) * len(self.prompts)) as advance:
            drawn: list[list[Answer]] = [[] for _ in self.prompts]
            for number in range(samples):
                wanted = [
                    index
                    for index, own in enumerate(drawn)
                    if self.tokens is None or sum(answer.generated_tokens for answer in own) < self.tokens
                ]
                if not wanted:
                    break
                asked = [self.prompts[index] for index in wanted]
                seed = self.seed("best-of") + number
                answers = policy.answer(asked, temperature=self.temperature, seed=seed, advance=advance)
                for index, answer in zip(wanted, answers, strict=True):
                    drawn[index].append(answer)
            return drawn

    @property
    def _answer_tokens(self) -> float:
        """Mean tokens of one answer."""
        return sum(answer.generated_tokens for answer in self.originals) / max(1, len(self.originals)) or 1.0


def comparisons(baselines: Sequence[Baseline]) -> list[tuple[str, str]]:
    """The pairs of systems whose Deltas are compared: PIT with each baseline, its closest rivals first.

    If both take part, one round of PIT is also compared with the SFT-only improver, which has one round too.
    """
    titles = [baseline.title for baseline in baselines if baseline.compared]
    pairs = [(PIT, title) for title in sorted(titles, key=lambda title: not title.startswith(SFT))]
    return [*pairs, (PIT_ONE, SFT)] if {PIT_ONE, SFT} <= set(titles) else pairs


def answer_of(trace: Trace) -> Answer:
    """The final answer of a system, with the tokens of the whole trace."""
    return Answer(trace.final, trace.generated_tokens, trace.prompt_tokens)
