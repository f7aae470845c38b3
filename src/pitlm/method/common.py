"""The parts that all training stages share: arguments, the order of rows, callbacks, resuming, saving."""

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from math import lcm
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from pitlm.core.errors import InputError
from pitlm.core.training_sections import RLSection, TrainSection
from pitlm.io.atomic import write_text
from pitlm.method.setting import Workbench
from pitlm.method.watch import MetricsWriter, ProgressBar
from pitlm.models.loading import save

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)

CHUNK = 32
"""Batches sorted by length together: enough to save most padding, few enough to stay random."""

FIXED: dict[str, dict[str, Any]] = yaml.safe_load((files("pitlm.method") / "trainers.yaml").read_text("utf-8"))
"""The arguments of the trainers that no recipe changes: of all of them, and of each kind."""

EVALUATION = "evaluation.json"
"""A stage writes this file last: a folder that holds it holds a trained model."""


def check_trackers(names: Sequence[str]) -> None:
    """Check before the run that these trackers are known and installed.

    Raises:
        InputError: a tracker is unknown or not installed.
    """
    usable = get_available_reporting_integrations()
    for name in names:
        if name not in usable:
            raise InputError(f"report_to: found '{name}', expected trackers that are installed: {', '.join(usable)}")


def trainer_arguments(kind: str, section: TrainSection, bench: Workbench) -> dict[str, Any]:
    """The fields of a TRL configuration that all configurations have, or that are fixed for one kind of trainer.

    Args:
        kind: sft, reward, dpo or rl: a key of ``FIXED``.
    """
    share = share_of_batch(section)
    # Trackers read their folder from the environment since transformers 5.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(bench.folder / "logs")
    return {
        "output_dir": str(bench.folder / "checkpoints"),
        "run_name": f"{bench.folder.parent.name}/{bench.folder.name}",
        **FIXED["all"],
        **FIXED[kind],
        **section.model_dump(include={"learning_rate", "weight_decay", "max_grad_norm", "gradient_checkpointing"}),
        "num_train_epochs": 1.0,  # see arranged()
        "max_steps": section.max_steps or -1,
        "per_device_train_batch_size": share // section.accumulation,
        "per_device_eval_batch_size": share,
        "gradient_accumulation_steps": section.accumulation,
        "warmup_steps": section.warmup,
        "lr_scheduler_type": section.schedule,
        "bf16": bench.dtype == "bfloat16" and torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": section.log_every,
        "save_steps": section.save_every,
        "seed": bench.seed,
        "data_seed": bench.seed,
        "report_to": list(bench.report_to) or "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def arranged(dataset: Dataset, lengths: Sequence[int], section: TrainSection, bench: Workbench) -> Dataset:
    """All epochs of a training set as one sequence, with rows of similar length in one batch."""
    order = length_grouped(lengths, batch_size=section.batch_size, epochs=section.epochs, seed=bench.seed)
    if section.max_steps is not None:
        # With more rows, a trainer that resumes from its last checkpoint would make a further step.
        order = order[: section.max_steps * section.batch_size]
    return dataset.select(order)


def length_grouped(lengths: Sequence[int], *, batch_size: int, epochs: float, seed: int) -> list[int]:
    """Row indices of ``epochs`` epochs, in batches of rows of similar length. Not in the paper.

    Each epoch is shuffled anew and cut into chunks. The rows of a chunk are sorted by length and cut into batches,
    which are shuffled. The seed fixes the whole order beforehand, so a resumed run gets the same rows. A sampler that
    draws during the training would give it other rows.

    Returns:
        ``round(epochs * len(lengths))`` indices, at least one; every row once in each whole epoch.
    """
    total = max(1, round(epochs * len(lengths)))
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < total:
        shuffled = rng.sample(range(len(lengths)), k=len(lengths))
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), CHUNK * batch_size):
            chunk = sorted(shuffled[start : start + CHUNK * batch_size], key=lambda index: lengths[index])
            batches += [chunk[at : at + batch_size] for at in range(0, len(chunk), batch_size)]
        # The last batch may be short. In the middle it would make every later batch mix lengths.
        full, short = batches[: len(lengths) // batch_size], batches[len(lengths) // batch_size :]
        rng.shuffle(full)
        order += [index for batch in (*full, *short) for index in batch]
    return order[:total]


def share_of_batch(section: TrainSection, processes: int | None = None) -> int:
    """The number of rows of each batch for one process: the batch of a recipe is shared by all processes.

    Args:
        processes: number of processes that train together; default: as the launcher says.

    Raises:
        InputError: the batch cannot be shared evenly, or a share of RL would not hold whole groups.
    """
    processes = processes or int(os.environ.get("WORLD_SIZE", "1"))
    whole = lcm(section.accumulation, section.group) if isinstance(section, RLSection) else section.accumulation
    if section.batch_size % (whole * processes):
        named = "accumulation and group" if isinstance(section, RLSection) else "accumulation"
        raise InputError(
            f"batch_size: found {section.batch_size}, expected a multiple of {whole * processes}: of {processes}"
            f" processes, each with a multiple of {whole} ({named})"
        )
    return section.batch_size // processes


def callbacks(bench: Workbench, title: str) -> list[TrainerCallback]:
    """The callbacks of every stage."""
    return [MetricsWriter(bench.folder / "metrics.jsonl"), ProgressBar(title)]


def make_trainer(kind: Callable[..., AnyTrainer], model: PreTrainedModel, bench: Workbench, **given: Any) -> AnyTrainer:
    """One of TRL's trainers for the model of a stage, silent, with an adapter if the recipe has LoRA."""
    trainer = kind(model=model, processing_class=bench.tokenizer, peft_config=bench.lora(), **given)
    trainer.remove_callback(PrinterCallback)
    if isinstance(trainer.model, PeftModel):
        # If a token was added to the base, PEFT would put the embedding into each checkpoint. It is not trained.
        trainer.model.save_pretrained = partial(trainer.model.save_pretrained, save_embedding_layers=False)
    return trainer


def fit(trainer: Trainer, bench: Workbench, title: str, *more: TrainerCallback) -> dict[str, float]:
    """Train and save the model. Training resumes from the last whole checkpoint. A finished model is not trained again.

    With LoRA, ``model`` has only the adapter over the base of the run. Once the model is saved, the checkpoints are
    deleted: their optimizer states are larger than the model.

    Args:
        more: further callbacks, called after those that every stage has.

    Returns:
        Metrics of the last evaluation; none without an evaluation set.
    """
    for callback in (*callbacks(bench, title), *more):
        trainer.add_callback(callback)
    checkpoints = bench.folder / "checkpoints"
    if (finished := finished_metrics(bench.folder)) is not None:  # the stage was interrupted after its training
        shutil.rmtree(checkpoints, ignore_errors=True)
        return finished
    for name, weight in trainer.model.named_parameters() if bench.quantize else ():
        # TRL makes adapters over four-bit weights bfloat16, in which a weight of 0.01 cannot move by less than 3e-5. A
        # step of RL is smaller, so they are held in float32, as PEFT does over sixteen-bit weights.
        if weight.requires_grad and ".lora_" in name:
            weight.data = weight.data.float()
    last = last_whole_checkpoint(checkpoints, delete=trainer.is_world_process_zero())
    trainer.accelerator.wait_for_everyone()
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressBar):
                callback.on_train_end(trainer.args, trainer.state, trainer.control)
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    _save(trainer, bench)
    # TRL's count of tokens starts anew in a resumed run, so the figure would depend on interruptions.
    figures = {name: v for name, v in metrics.items() if isinstance(v, float) and not name.endswith("num_tokens")}
    if trainer.is_world_process_zero():
        write_text(bench.folder / EVALUATION, json.dumps(figures, indent=2) + "\n")
        shutil.rmtree(checkpoints, ignore_errors=True)
    return figures


def finished_metrics(folder: Path) -> dict[str, float] | None:
    """Metrics of the last evaluation of a stage whose model is saved; None if there is no model yet."""
    path = folder / EVALUATION
    metrics: dict[str, float] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return metrics


def _save(trainer: Trainer, bench: Workbench) -> None:
    """Write the model, or its adapter, on the main process. All processes gather sharded weights there."""
    sharded = trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        save(model, bench.tokenizer, bench.card, bench.model_folder, state, bench.start if bench.peft else None)


def last_whole_checkpoint(folder: Path, *, delete: bool) -> Path | None:
    """The newest whole checkpoint, or None; with ``delete``, newer checkpoints that are not whole are removed.

    The trainer writes ``trainer_state.json`` last, so a checkpoint without a readable one is not whole.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if delete:
                shutil.rmtree(path)
        else:
            return path
    return None
