"""Stage 1 of the paper: supervised fine-tuning of policy and improver, through TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from pitlm.core.recipe import TrainSection
from pitlm.method.common import TokenRow, Workbench, arranged, callbacks, fit, seed_stage, trainer_arguments
from pitlm.models.loading import load_causal


def train_sft(
    rows: Sequence[TokenRow], held_out: Sequence[TokenRow], section: TrainSection, bench: Workbench, title: str
) -> dict[str, float]:
    """Minimise the negative log-likelihood of each completion given its prompt.

    For the policy a row is (x, y_w); for the improver (x with y_l, y_w): L = -sum log M_PIT(y_w | x, y_l).
    Rows come tokenized, so that SFT, reward models and RL read the same tokens. A row with more parts than two is a
    conversation of several turns, each of which is learnt.

    Returns:
        Held-out metrics.
    """
    seed_stage(bench)
    model = load_causal(bench.start, bench.tokenizer, bench.dtype, bench.quantize)
    return fit(sft_trainer(model, rows, held_out, section, bench, title), bench)


def sft_trainer(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    held_out: Sequence[TokenRow],
    section: TrainSection,
    bench: Workbench,
    title: str,
) -> SFTTrainer:
    """The trainer of :func:`train_sft`."""
    arguments = SFTConfig(
        **trainer_arguments(section, bench),
        max_length=None,
        packing=False,
        padding_free=False,
        pad_to_multiple_of=None,
        completion_only_loss=True,
        assistant_only_loss=False,
        shuffle_dataset=False,
        loss_type="nll",
        activation_offloading=False,
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=arranged(_labelled(rows), [sum(map(len, row)) for row in rows], section, bench),
        eval_dataset=_labelled(held_out),
        processing_class=bench.tokenizer,
        peft_config=bench.lora("CAUSAL_LM"),
        callbacks=callbacks(bench, title),
    )


def _labelled(rows: Sequence[TokenRow]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [[token for part in row for token in part] for row in rows],
            "labels": [
                [token if number % 2 else -100 for number, part in enumerate(row) for token in part] for row in rows
            ],
        }
    )
