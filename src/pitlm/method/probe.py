"""An independent quality of a model in training, on held-out items. Ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerControl, TrainerState

from pitlm.core.recipe import RLSection
from pitlm.data.template import encode_prompts
from pitlm.method.common import Workbench
from pitlm.method.logs import StepLog
from pitlm.models.generators import generate
from pitlm.models.loading import HFTokenizer

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Probe:
    """A quality to measure while a model is trained, and never to train on.

    Attributes:
        quality: conversations and answers -> quality of each answer.
        held_out: conversations that no stage trains on. Each measurement answers the same ones, from the same random
            numbers, so that measurements are paired by item.
    """

    quality: Callable[[list[Conversation], list[str]], list[float]]
    held_out: Sequence[Conversation]

    def of_tokens(self, tokenizer: HFTokenizer, shown: list[Conversation], completions: list[list[int]]) -> list[float]:
        """The quality of each sampled answer."""
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        return self.quality(shown, [text.strip() for text in texts])


class HeldOutProbe(StepLog):
    """Answers the held-out items before the first step, every few steps and after the last; writes ``probe.jsonl``.

    Each line has one quality per held-out item, in the same order.
    """

    def __init__(self, trainer: Trainer, probe: Probe, bench: Workbench, section: RLSection) -> None:
        super().__init__(probe_file(bench.folder))
        self.trainer, self.probe, self.bench, self.section = trainer, probe, bench, section
        self.held_out = list(probe.held_out)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Sharded weights are gathered for each token, so every process must read and write the same.
        broadcast_object_list(self.held_out)
        super().on_train_begin(args, state, control)
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.section.probe_every == 0 or state.global_step == state.max_steps:
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        tokenizer = self.bench.tokenizer
        completions = generate(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            tokenizer,
            encode_prompts(tokenizer, self.held_out),
            max_new_tokens=self.bench.card.max_new_tokens,
            temperature=self.section.temperature,
            seed=self.bench.seed,
        )
        self.append(state, {"quality": self.probe.of_tokens(tokenizer, self.held_out, completions)})


def probe_file(folder: Path) -> Path:
    """Where a stage keeps its measurements."""
    return folder / "probe.jsonl"
