"""TRL's RLOO step with less to compute, and the same numbers. Not in the paper.

Stock TRL reads a prompt once per completion. Without Triton it also projects prompt positions onto the vocabulary.
And it reads each sample twice with the policy that drew it. Here a prompt is read once per group, only completions
pass the head, and the first reading serves as the second. The decoder of pitlm draws the samples, each with a seed of
its own. This is the only module that uses private names of TRL; `tests/method/test_rl_step.py` compares the losses and
gradients with the stock trainer's.

Shapes: B rows (prompt + completion) of P + C tokens, G rows to a prompt.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl import RLOOTrainer

from pitlm.engines.engine import seed_of
from pitlm.engines.generators import generate
from pitlm.models.forest import Forest
from pitlm.models.trees import completion_log_probs, enable_trees, reads_trees

LogProbs = tuple[Tensor, Tensor | None, Tensor | None]


class SharedPromptRLOOTrainer(RLOOTrainer):
    """RLOOTrainer that reads each prompt once. For an architecture that cannot do so, it takes TRL's own step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for model in (self.model, self.ref_model):
            if model is not None:
                enable_trees(self.accelerator.unwrap_model(model))
        # The gradient of sharded or replicated weights needs a forward pass through their wrapper, and gradient
        # checkpointing must not keep activations for long.
        self._reads_once = (
            self.accelerator.num_processes == 1
            and not self.args.gradient_checkpointing
            and self.num_iterations == self.args.steps_per_generation == 1
        )
        self.kept: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        # Processes that gather sharded weights must take as many passes as their peers, which only TRL's loop ensures.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.use_vllm or images is not None or sharded or not reads_trees(model):
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
        limits = {"max_new_tokens": self.max_completion_length, "batch_size": len(prompt_ids)}
        seed = seed_of(int(torch.randint(2**31, ())), self.accelerator.process_index)
        return generate(model, self.processing_class, prompt_ids, temperature=self.temperature, seed=seed, **limits)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> LogProbs:
        if not reads_trees(model) or compute_aux_loss or any(value is not None for value in images.values()):
            given = (input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss)
            stock: LogProbs = super()._get_per_token_logps_and_entropies(model, *given, **images)
            return stock
        # TRL first reads the samples with the policy, without gradient, and later again with gradient, shuffled. In
        # between it reads them with the reference model, which with PEFT is the same model without its adapter.
        places = self._places(input_ids)
        if places is not None and torch.is_grad_enabled():
            (logp_BC, entropy_BC), self.kept = self.kept[1], None  # type: ignore[index]
            return logp_BC.index_select(0, places), entropy_BC.index_select(0, places), None
        first = model is self.model and self.model.training and places is None and not torch.is_grad_enabled()
        keep = self._reads_once and first
        with torch.set_grad_enabled(keep or torch.is_grad_enabled()), self.accelerator.autocast():
            seen = attention_mask.bool()
            rows = [ids[mask].tolist() for ids, mask in zip(input_ids, seen, strict=True)]
            prompts = seen[:, :-logits_to_keep].sum(1).tolist()
            parts: list[tuple[Tensor, Tensor]] = []
            for start in range(0, len(rows), batch_size or len(rows)):
                own = slice(start, start + (batch_size or len(rows)))
                parts.append(completion_log_probs(model, Forest.of(rows[own]), prompts[own], float(self.temperature)))
            logp_BC, entropy_BC = (
                torch.cat([pad(x, (0, logits_to_keep - x.shape[1])) for x in part]) for part in zip(*parts, strict=True)
            )
        if keep:
            self.kept = input_ids, (logp_BC, entropy_BC)
        return logp_BC.detach() if keep else logp_BC, entropy_BC, None

    def _places(self, input_ids: Tensor) -> Tensor | None:
        """The place of each row in the batch that was kept, shape (B,); None if a row is not in that batch."""
        if self.kept is None or self.kept[0].shape != input_ids.shape:
            return None
        kept = {tuple(row): place for place, row in enumerate(self.kept[0].tolist())}
        places = [kept.get(tuple(row)) for row in input_ids.tolist()]
        return None if None in places else torch.tensor(places, device=input_ids.device)
