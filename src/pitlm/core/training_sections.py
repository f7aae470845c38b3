"""The sections of a recipe that say how models are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from pitlm.core.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section

ReferenceSource = Literal["data", "policy", "improver"]
Relation = Literal["wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw"]
"""The relations of Eq. 1 that Eq. 2 trains. They stand here, too, because a recipe is read without torch."""


class TrainSection(Section):
    """Settings that every training stage has. Optimizer: AdamW.

    Attributes:
        max_steps: stop after this many steps, whatever the epochs.
        batch_size: examples per optimizer step, over all processes.
        accumulation: number of micro-batches in each step.
        warmup: share of the steps in which the learning rate rises.
        save_every: steps between checkpoints to resume from.
        eval_rows: held-out rows to evaluate a stage on.
    """

    learning_rate: PositiveFloat
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = 32
    accumulation: PositiveInt = 1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    gradient_checkpointing: bool = False
    log_every: PositiveInt = 10
    save_every: PositiveInt = 100
    eval_rows: PositiveInt = 256

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainSection:
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        return self


class GapSection(TrainSection):
    """Training of R_PIT.

    Attributes:
        terms: the differences of Eq. 2 that count; default: all five, as in the paper.
    """

    terms: Annotated[list[Relation], Field(min_length=1)] = [*get_args(Relation)]


class DPOSection(TrainSection):
    """DPO of the improver, a baseline.

    Attributes:
        beta: how strongly the improver is held to the SFT improver.
    """

    beta: PositiveFloat = 0.1


class RLSection(TrainSection):
    """One round of RLOO (Eq. 4, Eq. 5). `batch_size` counts completions.

    Attributes:
        group: G: completions per (x, y_ref).
        beta: KL coefficient; the anchor is the SFT improver.
        clip: epsilon of the clipped ratio.
        truncated_penalty: penalty on the reward of an answer without end token; null leaves such answers out of the
            group.
        share_prompts: read a prompt once per group; false: TRL's own step.
        rollouts: engine that samples: the model in training, vLLM on the same devices, or a vLLM server.
        rollout_server: address of the vLLM server.
        probe_every: steps between measurements of quality on held-out items.
        probe_items: held-out items of each measurement.
    """

    epochs: PositiveFloat = 1000.0
    max_steps: PositiveInt = 100
    batch_size: PositiveInt = 64
    group: Annotated[int, Field(ge=2)] = 8
    beta: NonNegativeFloat = 0.05
    temperature: PositiveFloat = 1.0
    clip: PositiveFloat = 0.2
    truncated_penalty: NonNegativeFloat | None = 1.0
    share_prompts: bool = True
    rollouts: Literal["transformers", "vllm-colocate", "vllm-server"] = "transformers"
    rollout_server: str = "http://127.0.0.1:8000"
    log_every: PositiveInt = 1
    save_every: PositiveInt = 20
    probe_every: PositiveInt = 20
    probe_items: PositiveInt = 64

    @model_validator(mode="after")
    def _whole_groups(self) -> RLSection:
        if (self.batch_size // self.accumulation) % self.group:
            raise ValueError(f"batch_size / accumulation is not a multiple of group {self.group}")
        if self.epochs != type(self).model_fields["epochs"].default:
            raise ValueError("'epochs' has no effect in RL, which takes max_steps")
        return self


@dataclass(frozen=True, slots=True)
class CurriculumStage:
    """One stage of curriculum RL: where its references come from, and which stage it goes on from.

    Attributes:
        number: 0 for the first stage.
        rl: the settings of its RL; ``max_steps`` is the stage's own number of steps.
        previous: name of the stage before; None for the first stage.
    """

    number: int
    source: ReferenceSource
    rl: RLSection
    previous: str | None

    @property
    def name(self) -> str:
        """The name of the stage's folder in a run."""
        return f"rl-{self.number}-{self.source}"


class CurriculumSection(Section):
    """The stages of curriculum RL, each named by where its references come from.

    Attributes:
        reward: reward of RL: R_PIT, or as an ablation R_P(y) - R_P(y_ref).
        steps: steps of each stage; default: rl.max_steps for all.
        reference_temperature: temperature of sampled references.
    """

    stages: list[ReferenceSource] = Field(["data", "policy"], min_length=1)
    rl: RLSection
    reward: Literal["gap", "reward_difference"] = "gap"
    steps: list[PositiveInt] | None = None
    reference_temperature: PositiveFloat = 1.0

    @property
    def stage_list(self) -> list[CurriculumStage]:
        """The stages in order, each with its own number of steps."""
        found: list[CurriculumStage] = []
        for number, source in enumerate(self.stages):
            rl = self.rl.model_copy(update={"max_steps": self.steps[number] if self.steps else self.rl.max_steps})
            found.append(CurriculumStage(number, source, rl, found[-1].name if found else None))
        return found

    @model_validator(mode="after")
    def _steps_match(self) -> CurriculumSection:
        if self.steps is not None and len(self.steps) != len(self.stages):
            raise ValueError(f"'steps' has {len(self.steps)} entries for {len(self.stages)} stages")
        if self.stages[0] == "improver":
            raise ValueError("the first stage cannot take references from the improver: there is none yet")
        return self
