"""One run: the processes that do its trainings, and the judge of its answers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pitlm.core.errors import RankFailed
from pitlm.core.nouns import Score
from pitlm.judge.scores import HELD_OUT, ScoreJudge, reward_judge
from pitlm.method.common import finished_metrics
from pitlm.method.launch import Launch, run_ranks
from pitlm.method.setting import Setting
from pitlm.models.adapters import Bases
from pitlm.models.machine import release_memory
from pitlm.models.scorers import RewardModel
from pitlm.report.shape import Report
from pitlm.run.judges import truth
from pitlm.run.results import run_report


class Trained(Exception):
    """Takes a rank out of a stage after the training. The process that launched the rank does the rest of the stage."""


@dataclass(frozen=True)
class Context(Setting):
    """One run.

    Attributes:
        launch: how further processes do each training; None: this process does it.
        rank: whether this process is one of them.
    """

    launch: Launch | None = None
    rank: bool = False

    @cached_property
    def report(self) -> Report:
        """The measurements of the run. The first access makes this report, so the evaluation has to be done before."""
        return run_report(self.root, self.recipe)

    def train(self, folder: Path, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Do the training of a stage, and no other part of the stage, here or in the processes of the launch.

        Each process of the launch repeats the stage up to this call, from the files of the stage. So results of earlier
        parts must be in files. Work that only the training needs belongs in ``work``.

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

    def judge(self, bases: Bases | None = None) -> ScoreJudge:
        """The truth where it is known; else a reward model trained on no pair that R_P or R_PIT was trained on.

        Args:
            bases: opens the reward model beside other models.
        """
        if self.recipe.data.world:
            return truth(self.recipe.data.world)
        return reward_judge(HELD_OUT, self.open(RewardModel, "judge", bases))

    def quality(self, bases: Bases) -> Score:
        return self.judge(bases).score
