"""Metrics of a training: written to a file, and shown in a progress bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState

from pitlm.io.atomic import write_text
from pitlm.io.console import make_progress

SHOWN = {"loss": "loss", "accuracy": "accuracy", "reward": "reward", "kl_sequence": "KL", "probe": "judge"}


class StepLog(TrainerCallback):
    """A file of JSON lines, each with its step, without those that an interrupted run wrote after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, state: TrainerState, row: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **row}) + "\n")


class MetricsWriter(StepLog):
    """Appends every log of the trainer."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.append(state, kwargs["logs"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a :class:`StepLog`, without a last line that was cut short."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class ProgressBar(TrainerCallback):
    """One line with the time left and the metrics in ``SHOWN``."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.progress = make_progress(TextColumn("{task.fields[metrics]}"))
        self.task = self.progress.add_task(self.title, total=state.max_steps, completed=state.global_step, metrics="")
        self.progress.start()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.progress is not None:
            logs = kwargs["logs"]
            shown = [
                f"{word} {float(logs[name]):.2f}"
                for name, word in SHOWN.items()
                # The policy-gradient loss says nothing: its mean is zero by construction.
                if logs.get(name) is not None and not (name == "loss" and "reward" in logs)
            ]
            if shown:
                self.progress.update(self.task, metrics="  ".join(shown))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
