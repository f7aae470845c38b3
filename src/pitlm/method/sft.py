"""Stage 1 of the paper: supervised fine-tuning of policy and improver, through TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from pitlm.core.nouns import Preference
from pitlm.core.recipe import TrainSection
from pitlm.data.template import Template, Tokenizer, encode_completion, encode_prompts
from pitlm.method.common import Workbench, arranged, make_trainer, trainer_arguments

TokenRow = tuple[list[int], ...]
"""Token ids that are read and that are learnt, in turn: a prompt, its completion with the end token, and so on."""


def policy_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[TokenRow]:
    """(x, y_w): L = -sum log M_P(y_w | x)."""
    prompts = encode_prompts(tokenizer, [template.policy_messages(pair.prompt) for pair in pairs])
    return [(ids, encode_completion(tokenizer, pair.chosen)) for ids, pair in zip(prompts, pairs, strict=True)]


def improver_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[TokenRow]:
    """(x with y_l as the reference, y_w): L = -sum log M_PIT(y_w | x, y_l)."""
    prompts = encode_prompts(tokenizer, [template.improver_messages(pair.prompt, pair.rejected) for pair in pairs])
    return [(ids, encode_completion(tokenizer, pair.chosen)) for ids, pair in zip(prompts, pairs, strict=True)]


def sft_trainer(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    held_out: Sequence[TokenRow],
    section: TrainSection,
    bench: Workbench,
) -> SFTTrainer:
    """A trainer that minimises the negative log-likelihood of each completion given its prompt.

    Rows come tokenized, so that SFT, reward models and RL read the same tokens. A row of more than two parts is a
    conversation of several turns, and each of its answers is learnt.
    """
    arguments = SFTConfig(
        **trainer_arguments(section, bench),
        max_length=None,
        packing=False,
        completion_only_loss=True,
        assistant_only_loss=False,
        shuffle_dataset=False,
        loss_type="nll",
    )
    ordered = arranged(_labelled(rows), [sum(map(len, row)) for row in rows], section, bench)
    return make_trainer(SFTTrainer, model, arguments, bench, ordered, _labelled(held_out))


def _labelled(rows: Sequence[TokenRow]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [[token for part in row for token in part] for row in rows],
            "labels": [
                [token if number % 2 else -100 for number, part in enumerate(row) for token in part] for row in rows
            ],
        }
    )
