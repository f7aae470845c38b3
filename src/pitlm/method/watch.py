"""How a training is watched: metrics in a file, a progress bar, and an independent quality of the model."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from pitlm.core.training_sections import RLSection
from pitlm.data.template import encode_prompts
from pitlm.engines.generators import generate
from pitlm.io.atomic import write_json_lines
from pitlm.io.console import progress_bar
from pitlm.method.setting import Workbench
from pitlm.models.loading import HFTokenizer

PROBE = "probe.jsonl"
"""The file in which a stage keeps the measurements of its probe."""

SHOWN = {"loss": "loss", "accuracy": "accuracy", "reward": "reward", "kl_sequence": "KL", "probe": "judge"}
"""The metrics in the progress bar, and what they are called there."""

Conversation = list[dict[str, str]]


class StepLog(TrainerCallback):
    """A file of JSON lines, each with its step. What an interrupted run wrote after its checkpoint is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            # A training that begins anew keeps nothing: it measures step 0 again.
            kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step > 0]
            write_json_lines(self.path, kept)

    def append(self, state: TrainerState, row: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **row}) + "\n")


class MetricsWriter(StepLog):
    """Appends every log of the trainer, with KL per sequence: TRL logs KL per token, but penalises KL per sequence."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "kl" in logs and "completions/mean_length" in logs:
            logs["kl_sequence"] = logs["kl"] * logs["completions/mean_length"]
        self.append(state, logs)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a :class:`StepLog`, without a last line that was cut short."""
    rows = []
    # Not splitlines(), which also splits at line ends that a JSON text may hold.
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class ProgressBar(TrainerCallback):
    """One line with the time left and the metrics in ``SHOWN``; to be called after :class:`MetricsWriter`."""

    def __init__(self, title: str) -> None:
        self.title, self.metrics, self.shown = title, "", ExitStack()
        self.advance: Callable[[int], None] = lambda steps: None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            bar = progress_bar(self.title, state.max_steps, lambda: self.metrics, done=state.global_step)
            self.advance = self.shown.enter_context(bar)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.advance(1)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        shown = [
            f"{word} {float(logs[name]):.2f}"
            for name, word in SHOWN.items()
            # The policy-gradient loss says nothing: its mean is zero by construction.
            if logs.get(name) is not None and not (name == "loss" and "reward" in logs)
        ]
        self.metrics = "  ".join(shown) or self.metrics
        self.advance(0)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.shown.close()


@dataclass(frozen=True)
class Probe:
    """A quality to measure while a model is trained, and never to train on.

    Attributes:
        quality: conversations and answers -> quality of each answer.
        held_out: conversations that no stage trains on. Each measurement answers all of them, with the same random
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
        super().__init__(bench.folder / PROBE)
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
        model, prompts = (
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            encode_prompts(tokenizer, self.held_out),
        )
        how: dict[str, Any] = {"temperature": self.section.temperature, "seed": self.bench.seed}
        completions = generate(model, tokenizer, prompts, max_new_tokens=self.bench.card.max_new_tokens, **how)
        self.append(state, {"quality": self.probe.of_tokens(tokenizer, self.held_out, completions)})
