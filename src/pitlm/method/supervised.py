"""Stages 1 and 2 of the paper: policy and improver by SFT, R_P and R_PIT by comparison, all from pairs.

TRL's SFTTrainer and RewardTrainer train them. Rows come tokenized, so that all stages read the same tokens.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, Trainer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from pitlm.core.equations import RELATIONS, gap_differences, gap_loss, reward_loss
from pitlm.core.nouns import Preference
from pitlm.core.training_sections import DPOSection, GapSection, TrainSection
from pitlm.data.template import Template, Tokenizer, encode_completion, encode_prompts
from pitlm.method.common import arranged, fit, make_trainer, trainer_arguments
from pitlm.method.setting import Setting, Workbench
from pitlm.models.forest import Forest
from pitlm.models.loading import Kind
from pitlm.models.trees import completion_log_probs, enable_trees, reads_trees, score_tree

IGNORED = -100
"""The label of a token that is only read."""

TokenRow = tuple[list[int], ...]
"""Token ids: a prompt, which is only read, its completion with the end token, which is learnt, and so on in turn."""


class PairRow(NamedTuple):
    """Token ids of (x, y_w) and (x, y_l), end tokens included."""

    chosen_ids: list[int]
    rejected_ids: list[int]


class GapRow(NamedTuple):
    """Token ids of the four rows of Eq. 2: ``wl`` has the candidate y_w and the reference y_l, and so on."""

    wl: list[int]
    ww: list[int]
    ll: list[int]
    lw: list[int]


class DPORow(NamedTuple):
    """Token ids of the improver's prompt, and of a better and a worse completion."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def policy_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[TokenRow]:
    """(x, y_w): L = -sum log M_P(y_w | x)."""
    prompts = encode_prompts(tokenizer, [template.policy_messages(pair.prompt) for pair in pairs])
    return [(ids, encode_completion(tokenizer, pair.chosen)) for ids, pair in zip(prompts, pairs, strict=True)]


def improver_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[TokenRow]:
    """(x with y_l as the reference, y_w): L = -sum log M_PIT(y_w | x, y_l)."""
    prompts = encode_prompts(tokenizer, [template.improver_messages(pair.prompt, pair.rejected) for pair in pairs])
    return [(ids, encode_completion(tokenizer, pair.chosen)) for ids, pair in zip(prompts, pairs, strict=True)]


def reward_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[PairRow]:
    """(x, y_w) beside (x, y_l)."""
    rows = zip(policy_rows(pairs, tokenizer, template), pairs, strict=True)
    return [PairRow(x + w, x + encode_completion(tokenizer, pair.rejected)) for (x, w), pair in rows]


def gap_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[GapRow]:
    """The four rows of Eq. 2, each exactly the improver's prompt and completion."""
    beside_w = encode_prompts(tokenizer, [template.improver_messages(pair.prompt, pair.chosen) for pair in pairs])
    beside_l = encode_prompts(tokenizer, [template.improver_messages(pair.prompt, pair.rejected) for pair in pairs])
    rows = []
    for pair, at_w, at_l in zip(pairs, beside_w, beside_l, strict=True):
        w, l = encode_completion(tokenizer, pair.chosen), encode_completion(tokenizer, pair.rejected)
        rows.append(GapRow(wl=at_l + w, ww=at_w + w, ll=at_l + l, lw=at_w + l))
    return rows


def dpo_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[DPORow]:
    """((x, y_ref), y_w, y_l): each pair with y_l as the reference, then each with y_w. Not in the paper."""
    rows = []
    for references in ([pair.rejected for pair in pairs], [pair.chosen for pair in pairs]):
        shown = [template.improver_messages(pair.prompt, y) for pair, y in zip(pairs, references, strict=True)]
        for pair, ids in zip(pairs, encode_prompts(tokenizer, shown), strict=True):
            rows.append(DPORow(ids, *(encode_completion(tokenizer, y) for y in (pair.chosen, pair.rejected))))
    return rows


def sft_trainer(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    held_out: Sequence[TokenRow],
    section: TrainSection,
    bench: Workbench,
) -> SFTTrainer:
    """A trainer that minimises the negative log-likelihood of each completion given its prompt.

    A row of more than two parts is a conversation of several turns, and each of its answers is learnt.
    """
    args = SFTConfig(**trainer_arguments("sft", section, bench))
    train = arranged(_labelled(rows), [sum(map(len, row)) for row in rows], section, bench)
    given = {"train_dataset": train, "eval_dataset": _labelled(held_out)}
    return make_trainer(CompletionSFTTrainer, model, bench, args=args, **given)


class CompletionSFTTrainer(SFTTrainer):
    """SFTTrainer that passes only completions through the head, and no padding through the layers; the same loss.

    Without Triton, TRL passes every position through the head, which is most of a small model's step. For rows of
    several turns, and for an architecture that reads no trees, this trainer takes TRL's own way.
    """

    def __init__(self, model: PreTrainedModel, **given: Any) -> None:
        super().__init__(model=model, **given)
        enable_trees(self.accelerator.unwrap_model(self.model), "passing prompts through the head, too")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labelled = [
            own[seen] != IGNORED for own, seen in zip(inputs["labels"], inputs["attention_mask"].bool(), strict=True)
        ]
        prompts = [int((~own).sum()) for own in labelled]
        one_turn = all(own[start:].all() and 0 < start < len(own) for own, start in zip(labelled, prompts, strict=True))
        if return_outputs or not one_turn or not reads_trees(model):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rows = [ids[: len(own)].tolist() for ids, own in zip(inputs["input_ids"], labelled, strict=True)]
        logp_BC, _ = completion_log_probs(model, Forest.of(rows), prompts, temperature=1.0)
        count = sum(map(len, rows)) - sum(prompts) if num_items_in_batch is None else num_items_in_batch
        # The trainer counts the tokens of all processes, and averages the gradients over them.
        shared = num_items_in_batch is not None and self.args.average_tokens_across_devices
        return -logp_BC.sum() / count * (self.accelerator.num_processes if shared else 1)


def _labelled(rows: Sequence[TokenRow]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [[token for part in row for token in part] for row in rows],
            "labels": [[token if n % 2 else IGNORED for n, part in enumerate(row) for token in part] for row in rows],
        }
    )


class TreeTrainer(RewardTrainer):
    """RewardTrainer whose examples are read as trees: what their rows share is read once, and there is no padding.

    Attributes:
        parts: the names of the rows of an example.
    """

    parts: tuple[str, ...]

    def judge(self, *scores_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and which examples are right in each respect, from the scores of each part; shape (B,) each."""
        raise NotImplementedError

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # rows come tokenized

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss in float32. Logs the share of examples that are right, over all processes."""
        scores = score_tree(model, inputs["forest"]).float()
        loss, right = self.judge(*scores.chunk(len(self.parts)))
        shares = self.accelerator.gather_for_metrics(torch.stack(list(right.values()), 1).float()).mean(0).tolist()
        for name, share in zip(right, shares, strict=True):
            self._metrics["train" if self.model.training else "eval"][name].append(share)
        return (loss, {"loss": loss, "scores": scores.view(len(self.parts), -1).T}) if return_outputs else loss


class PairTrainer(TreeTrainer):
    """R_P: the loss of Bradley and Terry, as in TRL's RewardTrainer."""

    parts = PairRow._fields

    def judge(self, *scores_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        w_B, l_B = scores_B
        return reward_loss(w_B, l_B), {"accuracy": w_B > l_B}


class GapTrainer(TreeTrainer):
    """R_PIT: Eq. 2.

    Attributes:
        terms: the differences that count.
    """

    parts = GapRow._fields
    terms: Collection[str] = RELATIONS

    def judge(self, *scores_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        right = dict(zip(RELATIONS, gap_differences(*scores_B) > 0, strict=True))
        shown = {f"order/{name}": right_B for name, right_B in right.items()}
        return gap_loss(*scores_B, terms=self.terms), {**shown, "accuracy": right["wl>lw"]}


def scorer_trainer(
    kind: type[TreeTrainer],
    model: PreTrainedModel,
    rows: Sequence[PairRow] | Sequence[GapRow],
    held_out: Sequence[PairRow] | Sequence[GapRow],
    section: TrainSection,
    bench: Workbench,
) -> RewardTrainer:
    """A trainer of R_P on (x, y_w, y_l) with :class:`PairTrainer`, or of R_PIT with :class:`GapTrainer`."""
    args = RewardConfig(**trainer_arguments("reward", section, bench))
    train, test = (Dataset.from_list([row._asdict() for row in own]) for own in (rows, held_out))
    train = arranged(train, [max(map(len, row)) for row in rows], section, bench)
    given = {"train_dataset": train, "eval_dataset": test, "data_collator": partial(tree_batch, kind.parts)}
    trainer = make_trainer(kind, model, bench, args=args, **given)
    if isinstance(trainer, GapTrainer) and isinstance(section, GapSection):
        trainer.terms = section.terms
    return trainer


class RowDPOTrainer(DPOTrainer):
    """DPOTrainer on rows that come tokenized."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def dpo_trainer(
    model: PreTrainedModel, rows: Sequence[DPORow], held_out: Sequence[DPORow], section: DPOSection, bench: Workbench
) -> DPOTrainer:
    """A trainer of DPO (arXiv:2305.18290), anchored to the model that the training starts from."""
    args = DPOConfig(**trainer_arguments("dpo", section, bench), beta=section.beta)
    train, test = (Dataset.from_list([row._asdict() for row in own]) for own in (rows, held_out))
    train = arranged(train, [sum(map(len, row)) for row in rows], section, bench)
    # With an adapter the anchor is the model under the adapter.
    given = {"ref_model": None if bench.peft else bench.load(), "train_dataset": train, "eval_dataset": test}
    return make_trainer(RowDPOTrainer, model, bench, args=args, **given)


def tree_batch(parts: Sequence[str], examples: list[dict[str, Any]]) -> dict[str, Any]:
    """B examples as a forest of their rows: all of the first part, then all of the second, and so on."""
    forest = Forest.of([example[part] for part in parts for example in examples])
    # The trainer takes the size of a batch from the first tensor that it finds.
    return {"examples": torch.arange(len(examples)), "forest": forest}


Lesson = Kind | Literal["dpo"]
LESSONS: Mapping[Lesson, tuple[str, Callable[..., Sequence[Any]], Callable[..., Trainer]]] = {
    "policy": ("policy SFT", policy_rows, sft_trainer),
    "improver": ("improver SFT", improver_rows, sft_trainer),
    "dpo": ("improver DPO", dpo_rows, dpo_trainer),
    "reward": ("reward model", reward_rows, partial(scorer_trainer, PairTrainer)),
    "gap": ("gap model", gap_rows, partial(scorer_trainer, GapTrainer)),
}
"""The title of each lesson, how pairs become its rows, and what trains a model on the rows."""


def train_on_pairs(
    run: Setting, lesson: Lesson, needs: Collection[str], folds: Sequence[str], section: TrainSection, folder: Path
) -> dict[str, Any]:
    """Train one model on the pairs of some folds; returns the number of pairs, and the held-out metrics.

    Args:
        needs: the stages that this stage may read.
    """
    rows_of = LESSONS[lesson][1]
    rows = rows_of([pair for fold in folds for pair in run.folds[fold]], run.tokenizer, run.template)
    held_out = rows_of(run.folds["validation"][: section.eval_rows], run.tokenizer, run.template)
    bench = run.bench(folder, start_of(run, lesson, needs), "improver" if lesson == "dpo" else lesson)
    return {"pairs": len(rows), **run.train(folder, lambda: train_on_rows(lesson, rows, held_out, section, bench))}


def train_on_rows(
    lesson: Lesson, rows: Sequence[Any], held_out: Sequence[Any], section: TrainSection, bench: Workbench
) -> dict[str, float]:
    """Train one model on the rows of its lesson; returns the held-out metrics."""
    title, _, trainer = LESSONS[lesson]
    return fit(trainer(bench.load(), rows, held_out, section, bench), bench, title)


def start_of(run: Setting, lesson: Lesson, needs: Collection[str]) -> str | Path:
    """R_PIT and DPO start from the improver. The others start from the policy if their stage needs it, else the base.

    The recipe can name another base for R_P, the judge and R_PIT.
    """
    model = run.recipe.model
    if lesson in ("reward", "gap") and model.reward_base:
        return model.reward_base
    if lesson in ("gap", "dpo"):
        return run.model("improver-sft")
    return run.model("policy-sft") if "policy-sft" in needs else run.start
