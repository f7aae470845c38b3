"""The configuration of a run: one validated tree, whose unknown keys fail."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pitlm.core.evaluation_section import EvaluationSection
from pitlm.core.loop_section import LoopSection
from pitlm.core.section import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Section
from pitlm.core.training_sections import CurriculumSection, DPOSection, GapSection, RLSection, TrainSection

Quantization = Literal["nf4"]
Size = Annotated[int, Field(gt=0, le=10**6)]
PairField = Literal["prompt", "chosen", "rejected", "system", "completion", "label"]

WORLDS = ("pocket", "house-style")
"""Worlds: sources of pairs that pitlm itself makes, with a known truth."""


class DataSection(Section):
    """Where pairs come from and how they are cut into folds.

    Attributes:
        source: path, folder or hub name of preference pairs; or a world with a known truth: 'pocket' or 'house-style'.
        columns: columns of other names, by the field that each is read as.
        pairs: most pairs to use; a world makes this many, and leaves out pairs of equal answers.
        noise: temperature of the Bradley-Terry noise of a world's labels, in points of utility; default: the world's.
        test: share of prompts kept for evaluation.
        validation: share of prompts kept for validation.
        folds: relative shares of SFT, reward models and RL in the other prompts.
        skip_invalid: set invalid rows aside instead of stopping.
        max_prompt_tokens: longest x, in tokens.
        max_response_tokens: longest y, in tokens, end token included.
        max_new_tokens: longest answer to sample, in training and after; default: max_response_tokens.
        over_long: drop over-long pairs, or trim x from its oldest turn.
    """

    source: str | None = None
    columns: dict[PairField, str] | None = None
    pairs: Annotated[int, Field(gt=0, le=10**6)] | None = None
    noise: PositiveFloat | None = None
    test: Fraction = 0.1
    validation: Fraction = 0.05
    folds: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1, 1, 1)
    skip_invalid: bool = False
    max_prompt_tokens: PositiveInt = 512
    max_response_tokens: PositiveInt = 256
    max_new_tokens: PositiveInt | None = None
    over_long: Literal["drop", "trim"] = "drop"

    @model_validator(mode="after")
    def _something_left(self) -> DataSection:
        if self.test + self.validation >= 1:
            raise ValueError(f"test {self.test} + validation {self.validation} leave nothing to train on; sum below 1")
        if self.noise is not None and self.world is None:
            raise ValueError("'noise' is for worlds, which label their own pairs; these pairs have labels")
        return self

    @property
    def world(self) -> str | None:
        """The world with a known truth from which the pairs come; None for data from elsewhere."""
        return self.source if self.source in WORLDS else None


class InitSection(Section):
    """A small model with random weights, for a run without a pretrained model."""

    architecture: Literal["llama", "qwen3"] = "llama"
    layers: Size = 2
    hidden: Size = 96
    heads: Size = 4
    head_dim: int = Field(default=32, gt=0, multiple_of=2)  # 32: the fewest that vLLM serves
    mlp: Size = 256
    tokenizer: Literal["words", "bpe"] = "words"
    vocabulary: Size = 512


class ModelSection(Section):
    """The causal language model that policy and improver start from.

    Attributes:
        base: folder, GGUF file or hub name; leave out to start from scratch with `init`.
        reward_base: base of R_P and R_PIT; default: the policy for R_P, the SFT improver for R_PIT.
        improver_start: model that improver SFT starts from; 'policy' if the base has random weights.
        policy: M_P, whose answers are improved: the policy after SFT, or after RLHF; default: after RLHF if the recipe
            has `policy_rl`. With 'sft', the policy after RLHF is a baseline.
        dtype: 'auto' is bfloat16 if adapters are trained (`peft`) and the machine multiplies bfloat16 natively, else
            float32. Whole weights in bfloat16 lose most steps below 3e-4 to rounding.
    """

    base: str | None = None
    reward_base: str | None = None
    init: InitSection | None = None
    improver_start: Literal["base", "policy"] = "base"
    policy: Literal["sft", "rlhf"] | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if (self.base is None) == (self.init is None):
            raise ValueError("give either 'base' (a path or hub name) or 'init' (a model from scratch)")
        if (init := self.init) and init.architecture == "llama" and init.hidden % init.heads:
            raise ValueError(f"init.heads: found {init.heads}, expected a divisor of init.hidden ({init.hidden})")
        return self


class LoraSection(Section):
    """Low-rank adapters in place of full fine-tuning.

    Attributes:
        dropout: acts in SFT only: TRL switches dropout off for reward models, DPO and RL.
        quantize: how the base is held while adapters train: nf4 is 4 bits (QLoRA).
    """

    r: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"
    quantize: Quantization | None = None


class TemplateSection(Section):
    """How x, y_ref and y become one conversation.

    Attributes:
        ask: the user turn after y_ref; it names no criterion.
        today: day, as '2026-01-31', that a chat template prints as today's; default: the day on which the run starts.
    """

    ask: str = Field("Please write a better answer.", min_length=1)
    today: Annotated[str, BeforeValidator(lambda day: date.fromisoformat(str(day)).isoformat())] | None = None


class Recipe(Section):
    """A complete configuration of one run. `report_to` names trackers: tensorboard, wandb, trackio, ..."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: NonNegativeInt = 0
    data: DataSection
    model: ModelSection
    template: TemplateSection = TemplateSection()
    peft: LoraSection | None = None
    policy_sft: TrainSection
    reward: TrainSection
    policy_rl: RLSection | None = None
    improver_sft: TrainSection
    improver_dpo: DPOSection | None = None
    gap: GapSection
    curriculum: CurriculumSection
    loop: LoopSection = LoopSection()
    evaluation: EvaluationSection = EvaluationSection()
    report_to: list[str] = ["tensorboard"]

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        if self.quantize and self.model.dtype != "bfloat16":
            raise ValueError(f"peft.quantize {self.quantize} needs model.dtype bfloat16, not {self.model.dtype}")
        if self.model.policy == "rlhf" and self.policy_rl is None:
            raise ValueError("model.policy rlhf needs the section policy_rl")
        return self

    def with_dtype(self, *, native_bfloat16: bool) -> Recipe:
        """This recipe for a machine: `model.dtype` is settled if it is 'auto'."""
        auto = "bfloat16" if native_bfloat16 and self.peft else "float32"
        settled = {"dtype": auto} if self.model.dtype == "auto" else {}
        return self.model_copy(update={"model": self.model.model_copy(update=settled)})

    def with_today(self, today: str | None) -> Recipe:
        """This recipe with a day in `template.today`, if it has none."""
        settled = {"today": self.template.today or today}
        return self.model_copy(update={"template": self.template.model_copy(update=settled)})

    @property
    def policy_stage(self) -> str:
        """The name of the stage that makes M_P, the policy whose answers are improved."""
        return "policy-rl" if self.policy_rl and self.model.policy != "sft" else "policy-sft"

    @property
    def other_policy_stage(self) -> str | None:
        """The name of the stage that makes the policy that is not M_P, before or after RLHF; None without RLHF."""
        return {"policy-sft": "policy-rl", "policy-rl": "policy-sft"}[self.policy_stage] if self.policy_rl else None

    @property
    def improver_stage(self) -> str:
        """The name of the stage that makes the finished improver."""
        return self.curriculum.stage_list[-1].name

    @property
    def quantize(self) -> Quantization | None:
        """The quantization of the run's models in memory; None holds the models as they are saved."""
        return self.peft.quantize if self.peft else None
