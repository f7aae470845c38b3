"""One round of RLOO: of the improver in each stage of the curriculum, or of the policy.

TRL's RLOO maximises the paper's objective literally: reward minus beta times the summed log-ratio to the reference
model (Eq. 4, Eq. 5). This module adds two things. The reference model is the SFT checkpoint in every stage, and is
checked before the first step. The reward reads exactly the tokens that were sampled.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from peft.utils.integrations import gather_params_ctx
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import RLOOConfig, RLOOTrainer
from trl.import_utils import is_vllm_available

from pitlm.core.errors import InputError
from pitlm.core.recipe import Quantization
from pitlm.core.training_sections import RLSection
from pitlm.data.template import CHAT_TEMPLATE_ARGUMENTS, encode_prompts
from pitlm.method.common import fit, make_trainer, trainer_arguments
from pitlm.method.rl_step import SharedPromptRLOOTrainer
from pitlm.method.setting import Workbench
from pitlm.method.watch import Conversation, HeldOutProbe, Probe
from pitlm.models.loading import load_model
from pitlm.models.lora import last_trained

T = TypeVar("T")

Reward = Callable[[list[list[int]], list[Conversation]], Tensor]
"""Token ids of prompt + completion, and the conversations that the prompts show -> score of each; shape (batch,)."""


def train_rl(
    conversations: Sequence[Conversation],
    reward: Reward,
    section: RLSection,
    bench: Workbench,
    *,
    title: str,
    anchor: Path,
    adapter: Path | None = None,
    probe: Probe | None = None,
) -> dict[str, float]:
    """One round of RLOO from ``bench.start``, anchored to ``anchor``.

    Args:
        conversations: prompts of the model, one per example: x for the policy; x, y_ref and the request for
            the improver.
        reward: scores sampled answers, in batches.
        anchor: the SFT checkpoint of the KL term.
        adapter: with LoRA, the checkpoint whose adapter is trained further; ``bench.start`` is then the anchor itself.
        probe: a quality to measure on the samples and on held-out items.

    Returns:
        No metrics: there is no loss to evaluate.

    Raises:
        RuntimeError: the trainer's KL anchor is not the checkpoint at ``anchor``.
    """
    model = bench.load()
    # TRL loads its frozen reference model from this name. By default a later stage would be anchored to its own start.
    model.config._name_or_path = str(anchor)
    kind = SharedPromptRLOOTrainer if section.share_prompts else RLOOTrainer
    args, rows = rl_arguments(section, bench), _in_order(conversations, section, bench)
    rewarded = sample_reward(reward, bench, section.truncated_penalty, probe)
    trainer = make_trainer(kind, model, bench, args=args, train_dataset=rows, reward_funcs=rewarded)
    if adapter is not None and bench.peft is not None:
        set_peft_model_state_dict(trainer.model, last_trained(adapter, bench.peft.r))
    watch: list[TrainerCallback] = [AnchorCheck(trainer, anchor, bench)]
    if probe is not None:
        watch.append(HeldOutProbe(trainer, probe, bench, section))
    return fit(trainer, bench, title, *watch)


def check_rollouts(section: RLSection, quantize: Quantization | None) -> None:
    """Check before the run that the sampler is installed and can read the weights.

    Raises:
        InputError: vLLM is wanted and not installed, or weights are held in 4 bits, which vLLM cannot read.
    """
    if section.rollouts == "transformers":
        return
    if quantize is not None:
        raise InputError(f"rollouts: found {section.rollouts} with peft.quantize {quantize}, expected transformers")
    if not is_vllm_available():
        raise InputError(f"rollouts: found {section.rollouts}, expected vLLM installed: pip install 'pitlm[vllm]'")


def take_for_steps(rng: random.Random, items: Sequence[T], section: RLSection) -> list[T]:
    """As many items as the steps of RL take, in random order; if there are fewer, all of them, for repeated use."""
    return rng.sample(items, k=min(_wanted(section), len(items)))


def _wanted(section: RLSection) -> int:
    """How many conversations the steps take: one for each group of samples."""
    return section.max_steps * section.batch_size // section.group


def _in_order(conversations: Sequence[Conversation], section: RLSection, bench: Workbench) -> Dataset:
    """As many conversations as the steps take, shuffled anew in each epoch.

    The order is fixed beforehand: TRL's sampler draws it as it goes, so a resumed run would meet other conversations.
    """
    rng = random.Random(bench.seed)
    order: list[Conversation] = []
    while len(order) < _wanted(section):
        order += rng.sample(list(conversations), k=len(conversations))
    return Dataset.from_dict({"prompt": order[: _wanted(section)]})


def rl_arguments(section: RLSection, bench: Workbench) -> RLOOConfig:
    """TRL's configuration of a round."""
    return RLOOConfig(
        **trainer_arguments("rl", section, bench),
        num_generations=section.group,
        steps_per_generation=section.accumulation,
        max_completion_length=bench.card.max_new_tokens,
        temperature=section.temperature,
        beta=section.beta,
        epsilon=section.clip,
        epsilon_high=section.clip,
        chat_template_kwargs={**CHAT_TEMPLATE_ARGUMENTS, "sanitize_control_tokens": True},
        use_vllm=section.rollouts != "transformers",
        vllm_mode=section.rollouts.removeprefix("vllm-") if section.rollouts != "transformers" else "colocate",
        vllm_server_base_url=section.rollout_server if section.rollouts == "vllm-server" else None,
    )


def sample_reward(
    score: Reward, bench: Workbench, truncated_penalty: float | None, probe: Probe | None
) -> Callable[..., list[float | None]]:
    """The function that RLOOTrainer asks for rewards: scores prompt + completion token ids, as sampled.

    An answer cut off before its end token is scored with the end token, less a penalty. Without a penalty its reward is
    None, which leaves it out of its group's baseline.
    """
    tokenizer = bench.tokenizer
    end = tokenizer.eos_token_id

    def reward(prompts: list[Conversation], completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
        ended = [ids[-1:] == [end] for ids in completion_ids]
        whole = [ids if done else [*ids, end] for ids, done in zip(completion_ids, ended, strict=True)]
        rows = [prompt + ids for prompt, ids in zip(encode_prompts(tokenizer, prompts), whole, strict=True)]
        rewards: list[float] = score(rows, prompts).tolist()
        if probe is not None:
            quality = probe.of_tokens(tokenizer, prompts, completion_ids)
            kwargs["log_metric"]("probe", sum(quality) / len(quality))
        cut = [None if truncated_penalty is None else value - truncated_penalty for value in rewards]
        return [value if done else less for value, less, done in zip(rewards, cut, ended, strict=True)]

    return reward


@dataclass(eq=False)
class AnchorCheck(TrainerCallback):
    """Checks before the first step that the KL anchor is the SFT checkpoint, weight for weight."""

    trainer: RLOOTrainer
    anchor: Path
    bench: Workbench

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.beta == 0.0:
            return
        anchor = load_model(self.anchor, self.bench.tokenizer, self.bench.dtype, self.bench.quantize)
        unwrap = self.trainer.accelerator.unwrap_model
        policy = unwrap(self.trainer.model)
        if not isinstance(policy, PeftModel):
            frozen = unwrap(self.trainer.ref_model)
        elif "ref" in policy.peft_config:
            raise RuntimeError("the KL anchor is a copy of the adapter, not the SFT checkpoint")
        else:
            frozen = policy.get_base_model()  # the weights under the adapter
        with gather_params_ctx([*anchor.parameters(), *frozen.parameters()]):  # ZeRO-3 shards both
            found = {name.replace(".base_layer.", "."): weight for name, weight in frozen.state_dict().items()}
            for name, weight in anchor.state_dict().items():
                if name not in found or not torch.equal(_whole(found[name]), weight.cpu()):
                    raise RuntimeError(f"the KL anchor differs from {self.anchor} in {name}")


def _whole(weight: Tensor) -> Tensor:
    """A weight on the CPU, gathered from all processes if FSDP shards it."""
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).cpu()
