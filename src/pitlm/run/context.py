"""What the stages of one run share: the recipe, the folders, and the truth where there is one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pitlm.core.errors import RankFailed
from pitlm.core.nouns import Preference, Prompt
from pitlm.core.recipe import Recipe
from pitlm.data.folds import read_folds
from pitlm.data.template import Template
from pitlm.judge.scores import Score, ScoreJudge
from pitlm.method.common import Workbench, finished_metrics
from pitlm.method.launch import Launch, run_ranks
from pitlm.models.adapters import Bases
from pitlm.models.devices import release_memory
from pitlm.models.loading import Card, HFTokenizer, Kind, load_tokenizer
from pitlm.models.scorers import RewardModel
from pitlm.run.finished import POCKET
from pitlm.run.judges import truth


class Trained(Exception):
    """How a rank leaves a stage, whose other parts are not its own."""


@dataclass(frozen=True)
class Context:
    """One run: its recipe and its root folder.

    Attributes:
        launch: where set, each training is done by further processes.
        rank: this is one of them.
    """

    recipe: Recipe
    root: Path
    launch: Launch | None = None
    rank: bool = False

    @property
    def pocket(self) -> bool:
        return self.recipe.data.source == POCKET

    def model(self, stage: str) -> Path:
        return self.root / stage / "model"

    @property
    def start(self) -> str | Path:
        """Where policy and improver begin."""
        return self.recipe.model.base or self.root / "data" / "base"

    @cached_property
    def tokenizer(self) -> HFTokenizer:
        return load_tokenizer(self.start)

    @property
    def template(self) -> Template:
        return Template(self.recipe.template.ask)

    @cached_property
    def folds(self) -> dict[str, list[Preference]]:
        return read_folds(self.root / "data")

    def card(self, kind: Kind) -> Card:
        data = self.recipe.data
        return Card(kind, self.recipe.template.ask, data.max_new_tokens or data.max_response_tokens)

    def bench(self, folder: Path, start: str | Path, kind: Kind) -> Workbench:
        """The workbench of one training stage; each stage has its own seed, made from the run's."""
        return Workbench(
            folder=folder,
            start=Path(start),
            tokenizer=self.tokenizer,
            card=self.card(kind),
            seed=self.seed(folder.name),
            dtype=self.recipe.model.dtype,
            peft=self.recipe.peft,
            report_to=self.recipe.report_to,
        )

    def train(self, folder: Path, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Do the training of a stage, and nothing else of it, here or in as many processes as the launch says.

        Each of those does the stage over again as far as this call, from the files that are there by now: what comes
        before it must be in files, what is needed for training alone belongs into ``work``.

        Returns:
            The last evaluation's metrics.

        Raises:
            RankFailed: a process died; the others have been stopped.
        """
        if self.rank:
            work()
            raise Trained
        if self.launch is None:
            return work()
        if (finished := finished_metrics(folder)) is not None:
            return finished
        release_memory()
        try:
            run_ranks(self.launch, "pitlm.run.rank", [str(self.root), folder.name])
        except RankFailed as error:
            logs = folder / "rank-*.log"
            raise RankFailed(f"{folder.name}: {error}. See {logs}; the same command goes on.") from error
        return finished_metrics(folder) or {}

    def seed(self, purpose: str) -> int:
        """A seed for one purpose, so that no two purposes share a stream of random numbers."""
        return int.from_bytes(hashlib.sha256(f"{self.recipe.seed}/{purpose}".encode()).digest()[:4]) % 2**31

    def bases(self) -> Bases:
        """Opens models of the run; those opened by one of these share what they can."""
        return Bases(self.recipe.model.dtype, self.recipe.quantize)

    def judge(self, bases: Bases) -> ScoreJudge:
        """The truth in the pocket world; elsewhere a reward model that neither R_P nor R_PIT shares a pair with.

        Args:
            bases: opens it beside other models.
        """
        if self.pocket:
            return truth()
        return ScoreJudge("held-out R_P", _reward_score(self.model("judge"), bases))


def _reward_score(path: Path, bases: Bases) -> Score:
    """A score function from a reward model's checkpoint, loaded once."""
    model = RewardModel.from_pretrained(path, bases=bases)

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        scores: list[float] = model.scores(prompts, responses).tolist()
        return scores

    return score
