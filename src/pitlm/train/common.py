"""What the training stages share: arguments, callbacks, resuming, saving."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from rich.progress import Progress, TextColumn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)
from transformers.integrations import get_available_reporting_integrations

from pitlm.core.config import LoraSection, RLSection, TrainSection
from pitlm.core.errors import InputError
from pitlm.models.adapters import save_over_base
from pitlm.models.loading import Card, save
from pitlm.runs.atomic import write_text
from pitlm.runs.console import make_progress
from pitlm.train.batches import length_grouped

TokenRow = tuple[list[int], ...]
"""Token ids that are read and that are learnt, in turn: a prompt and its completion (end token included), and so on."""

SHOWN = {"loss": "loss", "accuracy": "accuracy", "reward": "reward", "kl_sequence": "KL", "probe": "judge"}


@dataclass(frozen=True, slots=True)
class Workbench:
    """Where and how one stage trains; everything that is not an algorithm.

    Attributes:
        folder: the stage's own folder; checkpoints, metrics and the final model go there.
        start: the checkpoint that training starts from.
    """

    folder: Path
    start: Path
    tokenizer: PreTrainedTokenizerBase
    card: Card
    seed: int
    dtype: str = "float32"
    peft: LoraSection | None = None
    report_to: Sequence[str] = field(default_factory=list)

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    def lora(self, task: str) -> LoraConfig | None:
        """The adapter configuration; a reward head is trained and saved in full beside it."""
        if self.peft is None:
            return None
        return LoraConfig(
            r=self.peft.r,
            lora_alpha=self.peft.alpha,
            lora_dropout=self.peft.dropout,
            target_modules=self.peft.target_modules,
            task_type=task,
            modules_to_save=["score"] if task == "SEQ_CLS" else None,
        )


def check_trackers(names: Sequence[str]) -> None:
    """Before anything is spent: are these trackers known and installed?

    Raises:
        InputError: one is not.
    """
    usable = get_available_reporting_integrations()
    for name in names:
        if name not in usable:
            raise InputError(f"report_to: found '{name}', expected trackers that are installed: {', '.join(usable)}")


def seed_stage(bench: Workbench) -> None:
    """Call before a model is loaded: a new score head or adapter is then drawn from the stage's own seed.

    Otherwise it depends on what the process did before, and a run that was interrupted here would end elsewhere.
    """
    set_seed(bench.seed)


def trainer_arguments(section: TrainSection, bench: Workbench) -> dict[str, Any]:
    """The fields that every TRL configuration here sets, explicitly: TRL's defaults move between minors."""
    # Trackers read their folder from the environment since transformers 5.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(bench.folder / "logs")
    return {
        "output_dir": str(bench.folder / "checkpoints"),
        "run_name": f"{bench.folder.parent.name}/{bench.folder.name}",
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.epochs if isinstance(section, RLSection) else 1.0,  # see arranged()
        "train_sampling_strategy": "sequential",
        "max_steps": section.max_steps or -1,
        "per_device_train_batch_size": section.batch_size // section.accumulation,
        "per_device_eval_batch_size": section.batch_size,
        "gradient_accumulation_steps": section.accumulation,
        "warmup_steps": section.warmup,
        "lr_scheduler_type": section.schedule,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "gradient_checkpointing": section.gradient_checkpointing,
        "bf16": bench.dtype == "bfloat16" and torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": section.log_every,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": section.save_every,
        "save_total_limit": 2,
        "save_only_model": False,
        "seed": bench.seed,
        "data_seed": bench.seed,
        "report_to": list(bench.report_to) or "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "push_to_hub": False,
    }


def arranged(dataset: Dataset, lengths: Sequence[int], section: TrainSection, bench: Workbench) -> Dataset:
    """All epochs of a training set as one sequence, rows of like length in one batch."""
    order = length_grouped(lengths, batch_size=section.batch_size, epochs=section.epochs, seed=bench.seed)
    if section.max_steps is not None:
        order = order[: section.max_steps * section.batch_size * processes()]
    return dataset.select(order)


def processes() -> int:
    """How many processes train together.

    A training set holds exactly the rows that its steps take: with more of them, the trainer makes a further step
    when it goes on from its last checkpoint.
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


class MetricsWriter(TrainerCallback):
    """Appends every log of the trainer to ``metrics.jsonl``, less what an interrupted run had beyond its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
        replace_rows(self.path, kept)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **kwargs["logs"]}) + "\n")


def replace_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a file of JSON lines anew."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class ProgressBar(TrainerCallback):
    """One line with the time left and the metrics that matter."""

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


def callbacks(bench: Workbench, title: str) -> list[TrainerCallback]:
    return [MetricsWriter(bench.folder / "metrics.jsonl"), ProgressBar(title)]


def fit(trainer: Trainer, bench: Workbench) -> dict[str, float]:
    """Train, going on from the last whole checkpoint where there is one, and save the model.

    With LoRA the adapter is merged into ``model`` (so that every engine can load it), which also has it over the base
    of the run (so that the models of a run can share that in memory), and is kept in ``adapter`` over the weights that
    the stage began with (so that a later stage can go on with it). Once the model is saved the checkpoints are deleted:
    their optimizer states are larger than it. A model that is there already is not trained again.

    Returns:
        The last evaluation's metrics, where the trainer has an evaluation set.
    """
    trainer.remove_callback(PrinterCallback)
    checkpoints, evaluation = bench.folder / "checkpoints", bench.folder / "evaluation.json"
    if evaluation.is_file():  # written last; what came after training was interrupted
        finished: dict[str, float] = json.loads(evaluation.read_text(encoding="utf-8"))
        return finished
    last = last_whole_checkpoint(checkpoints, delete=trainer.is_world_process_zero())
    trainer.accelerator.wait_for_everyone()
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressBar):
                callback.on_train_end(trainer.args, trainer.state, trainer.control)
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    model: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model.save_pretrained(bench.folder / "adapter", selected_adapters=["default"])
        save_over_base(bench.folder / "adapter", bench.start, bench.model_folder)
        model = model.merge_and_unload()
    save(model, bench.tokenizer, bench.card, bench.model_folder)
    # TRL's count of tokens starts anew where an interrupted run goes on: a figure that would depend on that.
    figures = {name: v for name, v in metrics.items() if isinstance(v, float) and not name.endswith("num_tokens")}
    if trainer.is_world_process_zero():
        write_text(evaluation, json.dumps(figures, indent=2) + "\n")
        shutil.rmtree(checkpoints, ignore_errors=True)
    return figures


def last_whole_checkpoint(folder: Path, *, delete: bool) -> Path | None:
    """The newest checkpoint that was written to its end; with ``delete``, those that were not are removed.

    The trainer writes ``trainer_state.json`` last, so a checkpoint without a readable one is half of one.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if delete:
                shutil.rmtree(path)
        else:
            return path
    return None
