"""Reward models that others have trained: any sequence-classification checkpoint with one logit."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding, PreTrainedModel

from pitlm.core.errors import InputError, loading
from pitlm.core.nouns import Prompt
from pitlm.data.template import CHAT_TEMPLATE_ARGUMENTS
from pitlm.models.loading import HFTokenizer
from pitlm.models.machine import device
from pitlm.models.trees import batches
from pitlm.models.weights import SAFELY, check_weights

TOKENS_PER_BATCH = 8_192
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}


def check_reward_model(path: str | Path) -> None:
    """Read the configuration of a reward model, but not its weights.

    Raises:
        InputError: there is no model, only an adapter, or the model's configuration names more than one logit.
    """
    _refuse_adapter(path)
    with loading(path, "reward model"):
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    if config.num_labels != 1:
        raise InputError(f"{path}: found {config.num_labels} logits, expected a reward model with one")


def _refuse_adapter(path: str | Path) -> None:
    if Path(path, "adapter_config.json").is_file() and not Path(path, "config.json").is_file():
        raise InputError(f"{path}: found an adapter of PEFT, expected a whole model; merge it (merge_and_unload)")


class ForeignRewardModel:
    """r(x, y) of a checkpoint from elsewhere, which reads x and y as its makers intended.

    With a chat template, the score is that of the conversation with the answer as its last turn. Without one, x and y
    are the tokenizer's text pair, as OpenAssistant's DeBERTa-v3 reads them (the judge of the PIT paper, Section
    Evaluation); if x has several turns, they are joined as ``Human: ...`` and ``Assistant: ...`` (ours).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: HFTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Load by path or hub name in float32, safetensors only.

        Raises:
            InputError: nothing loadable there, an adapter, not exactly one logit, or weights that are missing or not
                finite: the verdicts would be random.
        """
        _refuse_adapter(path)
        with loading(path, "reward model"):
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(str(path), dtype=torch.float32, **SAFELY)
        check_weights(path, report["missing_keys"], model.named_parameters())
        check_reward_model(path)
        return cls(model.to(device()).eval(), tokenizer)

    @property
    def longest(self) -> int | None:
        """Tokens that the model's positions allow; None if they set no limit, as relative positions do."""
        config = self.model.config
        relative = not getattr(config, "position_biased_input", True)
        return None if relative else getattr(config, "max_position_embeddings", None)

    @torch.inference_mode()
    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """r(x, y) of each pair, float32 on the CPU; shape (len(prompts),). NaN for a pair that is too long."""
        rows = [self._encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        scores = torch.full((len(rows),), torch.nan)
        for batch in self._batches([row["input_ids"] for row in rows]):
            if len(batch) == 1:
                inputs = BatchEncoding({name: [ids] for name, ids in rows[batch[0]].items()}, tensor_type="pt")
            else:
                inputs = self.tokenizer.pad([rows[i] for i in batch], padding_side="right", return_tensors="pt")
            scores[batch] = self.model(**inputs.to(self.model.device)).logits[:, 0].float().cpu()
        return scores

    def _encode(self, prompt: Prompt, response: str) -> dict[str, list[int]]:
        if self.tokenizer.chat_template is None:
            told = [f"{SPEAKERS[message.role]}: {message.content}" for message in prompt.messages]
            return dict(self.tokenizer("\n\n".join(told) if len(told) > 1 else prompt.text, response))
        turns = [*prompt.as_messages(), {"role": "assistant", "content": response}]
        options = {"tokenize": True, "return_dict": True, "sanitize_control_tokens": True, **CHAT_TEMPLATE_ARGUMENTS}
        return dict(self.tokenizer.apply_chat_template(turns, **options))

    def _batches(self, rows: Sequence[list[int]]) -> Iterator[list[int]]:
        """Rows of like length together; one by one if the model does not know which token is padding."""
        pad = self.tokenizer.pad_token_id
        together = pad is not None and pad == self.model.config.get_text_config().pad_token_id
        fitting = [i for i, row in enumerate(rows) if self.longest is None or len(row) <= self.longest]
        for batch in batches([rows[i] for i in fitting], TOKENS_PER_BATCH if together else 0):
            yield [fitting[i] for i in batch]
