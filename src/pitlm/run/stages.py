"""A recipe as a list of stages, in the order of the paper's method section.

Each stage says what it reads, what it depends on, and what it trains. Nothing heavy is imported here: the planner reads
this list, and :mod:`pitlm.run.stage_work` does the work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pitlm.core.recipe import Recipe
from pitlm.core.training_sections import CurriculumStage, RLSection, TrainSection
from pitlm.io.digest import digest
from pitlm.loop.baselines.baseline import DPO_STAGE, guide_file
from pitlm.run.folder import Stage
from pitlm.run.judges import judge_settings
from pitlm.worlds.known import KNOWN

Task = Literal["data", "policy", "improver", "dpo", "reward", "gap", "policy-rl", "curriculum", "evaluation", "report"]
"""What a stage does: `policy` and `improver` are SFT, `reward` is R_P or the judge, `gap` is R_PIT."""

SECTIONS: Mapping[Task, str] = {
    "policy": "policy_sft",
    "improver": "improver_sft",
    "dpo": "improver_dpo",
    "policy-rl": "policy_rl",
    "curriculum": "curriculum.rl",
}
"""The section of the recipe with the settings of a training, if it has another name than the stage's task."""


WITHOUT_EFFECT = {"rollout_server", "save_every", "log_every"}
"""Settings of a training that do not change its model."""


@dataclass(frozen=True)
class PipelineStage(Stage):
    """One stage of a run.

    Attributes:
        section: settings of its training, if it trains a model.
        folds: names of the folds whose pairs it trains on.
        curriculum: the description of a stage of the curriculum; None for other stages.
    """

    task: Task
    section: TrainSection | None = None
    folds: Sequence[str] = ()
    curriculum: CurriculumStage | None = None

    @property
    def key(self) -> str:
        """The section of the recipe with the settings of its training."""
        return SECTIONS.get(self.task, self.task)

    @property
    def training(self) -> TrainSection:
        """Settings of the training of a stage that trains."""
        assert self.section is not None
        return self.section

    @property
    def rl(self) -> RLSection:
        """Settings of the training of a stage of RL."""
        assert isinstance(self.section, RLSection)
        return self.section


def build_stages(recipe: Recipe, *, contents: bool = True) -> list[PipelineStage]:
    """Every stage of a run, each with the settings that it depends on and the stages that it reads.

    Args:
        contents: read the local files and folders that the recipe names, because fingerprints include their contents.
    """
    model, evaluation, curriculum, policy = recipe.model, recipe.evaluation, recipe.curriculum, recipe.policy_stage
    judges = [] if recipe.data.world else ["judge"]
    common = {
        "seed": recipe.seed,
        "model": model.model_dump(exclude={"base", "reward_base"}),
        **_input("model.base", model.base, contents, sample=True),
        **_input("model.reward_base", model.reward_base, contents, sample=True),
        "template": recipe.template.model_dump(),
        "peft": recipe.peft.model_dump() if recipe.peft else None,
    }
    stages: list[PipelineStage] = []

    def add(task: Task, name: str, needs: Sequence[str], settings: Mapping[str, Any], **trains: Any) -> None:
        section, folds = trains.get("section"), list(trains.get("folds", ()))
        train = {"train": section.model_dump(exclude=WITHOUT_EFFECT), "folds": folds} if section else {}
        stages.append(PipelineStage(name, {**common, **settings, **train}, needs, task, **trains))

    source = _input("data.source", recipe.data.source, contents)
    world = recipe.data.world
    warmth = {"policy_temperature"}
    written_as = {"answers": evaluation.model_dump(include=warmth)} if world and KNOWN[world].written else {}
    add("data", "data", [], {"data": recipe.data.model_dump(exclude={"source"}), **source, **written_as})
    add("policy", "policy-sft", ["data"], {}, section=recipe.policy_sft, folds=["sft"])
    add("reward", "reward", ["data", "policy-sft"], {}, section=recipe.reward, folds=["reward"])
    for judge in judges:
        # The judge shares no pair with R_P and R_PIT, and does not start from the policy where there is a base.
        reads = ["data"] if model.base else ["data", "policy-sft"]
        add("reward", judge, reads, {}, section=recipe.reward, folds=["sft", "rl"])
    if recipe.policy_rl:
        needs = ["data", "policy-sft", "reward", *judges]
        add("policy-rl", "policy-rl", needs, {}, section=recipe.policy_rl, folds=["rl"])
    start = ["policy-sft"] if model.improver_start == "policy" else []
    add("improver", "improver-sft", ["data", *start], {}, section=recipe.improver_sft, folds=["sft"])
    if recipe.improver_dpo:
        add("dpo", DPO_STAGE, ["data", "improver-sft"], {}, section=recipe.improver_dpo, folds=["reward"])
    fresh = evaluation.model_dump(include={"fresh_pairs", *warmth})
    needs = ["data", "reward", policy, "improver-sft", *judges]
    add("gap", "gap", needs, fresh, section=recipe.gap, folds=["reward"])
    scorer = "gap" if curriculum.reward == "gap" else "reward"
    references = {"reward": curriculum.reward, "reference_temperature": curriculum.reference_temperature}
    for stage in curriculum.stage_list:
        needs = ["data", "improver-sft", scorer, policy, *([stage.previous] if stage.previous else []), *judges]
        settings = {"source": stage.source, **references}
        add("curriculum", stage.name, needs, settings, section=stage.rl, folds=["rl"], curriculum=stage)
    other = [recipe.other_policy_stage] if recipe.other_policy_stage else []
    other += [DPO_STAGE] if recipe.improver_dpo else []
    needs = ["data", policy, *other, "reward", "improver-sft", "gap", recipe.improver_stage, *judges]
    guides = [digest(guide_file(name)) for name in evaluation.self_refine]
    compared = {**evaluation.model_dump(exclude={"judges", "batch_size", "resamples"}), "self_refine": guides}
    held_out = {"evaluation": compared, "loop": recipe.loop.model_dump()}
    add("evaluation", "evaluation", needs, held_out | (judge_settings(evaluation.judges) if contents else {}))
    stages.append(PipelineStage("report", {"name": recipe.name}, [stage.name for stage in stages], "report"))
    return stages


def _input(key: str, source: str | None, contents: bool, *, sample: bool = False) -> Mapping[str, str | None]:
    """The digest of a local input, or the name of another input. A digest does not depend on the path of the input."""
    found = digest(source, sample=sample) if contents else None
    return {f"contents of {key}": found} if found else {key: source}
