"""An independent quality of a model in training, on held-out items. Ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from pitlm.core.recipe import RLSection
from pitlm.data.template import encode_prompts
from pitlm.method.common import Workbench
from pitlm.method.logs import read_metrics, replace_rows
from pitlm.models.generators import generate

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Probe:
    """A quality that is measured while a model is trained, and never trained on.

    Attributes:
        quality: conversations and answers -> quality of each.
        held_out: conversations that no stage trains on; the same ones are answered at each measurement, from the same
            random numbers, so that measurements are paired by item.
    """

    quality: Callable[[list[Conversation], list[str]], list[float]]
    held_out: Sequence[Conversation]


class HeldOutProbe(TrainerCallback):
    """Answers the held-out items before the first step, every few steps and after the last; writes ``probe.jsonl``."""

    def __init__(self, trainer: Trainer, probe: Probe, bench: Workbench, section: RLSection) -> None:
        self.trainer = trainer
        self.probe = probe
        self.held_out = list(probe.held_out)
        self.bench = bench
        self.section = section
        self.path = probe_file(bench.folder)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Sharded weights are gathered for each token, so every process has to read and write the same.
        broadcast_object_list(self.held_out)
        if state.is_world_process_zero:
            replace_rows(self.path, [row for row in read_metrics(self.path) if row["step"] <= state.global_step])
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.section.probe_every == 0 or state.global_step == state.max_steps:
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        conversations = self.held_out
        completions = generate(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            self.bench.tokenizer,
            encode_prompts(self.bench.tokenizer, conversations),
            max_new_tokens=self.bench.card.max_new_tokens,
            temperature=self.section.temperature,
            seed=self.bench.seed,
        )
        texts = [text.strip() for text in self.bench.tokenizer.batch_decode(completions, skip_special_tokens=True)]
        quality = self.probe.quality(conversations, texts)
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "quality": quality}) + "\n")


def probe_file(folder: Path) -> Path:
    """Where a stage keeps its measurements: one line each, with ``step`` and one ``quality`` per held-out item."""
    return folder / "probe.jsonl"
