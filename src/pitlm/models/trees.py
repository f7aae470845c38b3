"""Scores of rows that share beginnings: the same numbers as separate rows give, up to rounding. Not in the paper.

Rows are packed into forests that fit into memory, and a forest is read in one forward pass.

A token attends to its ancestors and itself, its position is its depth in its tree, and the score of a row is read
at the row's last token. Linear layers see each token of the forest once; attention goes block by block.

Shapes: R rows, T tokens of a forest; H heads, E = H times their width; blocks as in :mod:`pitlm.models.forest`.
C tokens of the longest completion, N of all, U tokens from which something is predicted, V vocabulary.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pitlm.models.forest import Forest, shared_prefix

TREE_ATTENTION = "pitlm_tree"
TOKENS_PER_BATCH = 16_384
"""Tokens that are read in one pass, by default."""
ARCHITECTURES = frozenset({
    "gemma", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe",
    "smollm3", "starcoder2",
})  # fmt: skip
"""Model types whose trees give the same scores as separate rows; a test checks each type. Other types are scored as
rows: Gemma 2 soft-caps its attention, and the attention of Bloom and Falcon cannot be replaced."""


class Columns(Protocol):
    """A cache that says which of its columns each row sees, as :class:`pitlm.engines.places.Places` does."""

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor: ...


def _tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    forest: Forest | None = None,
    places: Columns | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention along the paths of a forest; query, key and value are (1, H, T, D).

    Without a forest this is transformers' SDPA, with the mask of the places if there are places.
    """
    if places is not None:
        attention_mask = places.mask(kwargs.get("sliding_window"), query.dtype)
    if forest is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output

    def at(flat_TE: Tensor, index: Tensor, heads: int) -> Tensor:
        # index_select, because the gradient of flat[index] is ten times slower on a CPU.
        return flat_TE.index_select(0, index.flatten()).view(*index.shape, heads, -1).transpose(1, 2)

    q_TE, k_TE, v_TE = (states[0].transpose(0, 1).flatten(1) for states in (query, key, value))
    outputs, window = [], kwargs.get("sliding_window")
    for number, block in enumerate(forest.blocks):
        k, v = at(k_TE, block.keys_nK, key.shape[1]), at(v_TE, block.keys_nK, value.shape[1])
        q, mask = at(q_TE, block.queries_nQ, query.shape[1]), forest.mask(number, query.dtype, window)
        attended, _ = sdpa_attention_forward(module, q, k, v, mask, **kwargs)
        outputs.append(attended.flatten(0, 1).flatten(1))
    return torch.cat(outputs).index_select(0, forest.order_T).view(1, -1, query.shape[1], value.shape[-1]), None


AttentionInterface.register(TREE_ATTENTION, _tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)


def enable_trees(
    model: PreTrainedModel, otherwise: str = "its rows cannot be scored as trees; scoring separate rows"
) -> bool:
    """Let a model read trees and places if its architecture allows it. Rows are read as before.

    Args:
        otherwise: what to log if the architecture does not allow it.

    Returns:
        Whether the architecture allows it.
    """
    able = model.config.model_type in ARCHITECTURES
    if able:
        model.set_attn_implementation(TREE_ATTENTION)
    else:
        warn_once(f"{model.config.model_type}: {otherwise}")
    return able


@cache
def warn_once(message: str) -> None:
    """Log a warning the first time that it comes up in this process."""
    logging.getLogger(__name__).warning(message)


def reads_trees(model: torch.nn.Module) -> bool:
    """Whether :func:`enable_trees` took effect; the model may be wrapped (PEFT, data-parallel)."""
    config: Any = getattr(getattr(model, "module", model), "config", None)
    return getattr(config, "_attn_implementation", None) == TREE_ATTENTION


def score_tree(model: torch.nn.Module, forest: Forest) -> Tensor:
    """Scores of the forest's rows, each read at its last token; differentiable. Shape (R,).

    The pass goes through the model's own ``forward``, so that every wrapper (data-parallel, autocast) sees the pass.
    """
    if not reads_trees(model):
        return _score_rows(model, forest.rows)
    here = forest.to(next(model.parameters()).device)
    scores: list[Tensor] = []
    head = next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "score")
    # The pooling of transformers keeps one score a sequence.
    hook = head.register_forward_hook(lambda module, inputs, output: scores.append(output[0, :, 0]))
    try:
        model(**_inputs(here))
    finally:
        hook.remove()
    return scores[0][here.last_R]


@torch.inference_mode()
def score_ids(model: PreTrainedModel, rows: Sequence[list[int]], tokens_per_batch: int = TOKENS_PER_BATCH) -> Tensor:
    """Scores of whole token sequences, float32 on the CPU; shape (len(rows),).

    The score of a row is read at its last token. All rows that begin alike are read as one tree.
    """
    scores = torch.zeros(len(rows))
    was_training = model.training
    model.eval()
    for chosen in batches(rows, tokens_per_batch, trees=reads_trees(model)):
        scores[chosen] = score_tree(model, Forest.of([rows[i] for i in chosen])).float().cpu()
    model.train(was_training)
    return scores


@torch.inference_mode()
def score_groups(model: PreTrainedModel, groups: Sequence[Sequence[list[int]]]) -> list[Tensor]:
    """Scores of the rows of each group, none of them empty, as if the group were scored alone; float32 on the CPU.

    Groups share nothing in the passes in which they are read.
    """
    if not reads_trees(model):
        return list(score_ids(model, [row for group in groups for row in group]).split([len(g) for g in groups]))
    found: list[Tensor] = []
    batch: list[Forest] = []
    for number, group in enumerate(groups, 1):
        batch.append(Forest.of(group))
        if number == len(groups) or sum(f.input_ids_1T.shape[1] for f in batch) >= TOKENS_PER_BATCH:
            found += score_tree(model, Forest.join(batch)).float().cpu().split([len(forest.rows) for forest in batch])
            batch = []
    return found


def batches(rows: Sequence[list[int]], tokens: int, *, trees: bool = False) -> Iterator[list[int]]:
    """Indices of rows, in batches whose tokens fit into a budget. Rows of a batch begin alike, or are of like length.

    Args:
        trees: rows are read as trees; otherwise padded to one length.
    """
    batch: list[int] = []
    used, before = 0, list[int]()
    for index in sorted(range(len(rows)), key=rows.__getitem__ if trees else lambda i: len(rows[i])):
        row = rows[index]
        used = used + len(row) - shared_prefix(before, row) if trees else (len(batch) + 1) * len(row)
        if batch and used > tokens:
            yield batch
            batch, used = [], len(row)
        batch.append(index)
        before = row
    if batch:
        yield batch


def completion_log_probs(
    model: torch.nn.Module, forest: Forest, prompt_lengths: Sequence[int], temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens after each row's prompt, each prompt read once; differentiable.

    The head sees only the tokens from which something is predicted, each once.

    Args:
        prompt_lengths: tokens of each row's prompt: at least one, with at least one token after them.
        temperature: logits are divided by it.

    Returns:
        Log-probabilities and (without gradient) entropies, padded with zeros on the right; shape (R, C) each.
    """
    here = forest.to(next(model.parameters()).device)
    at = [path[start - 1 : -1] for path, start in zip(forest.paths, prompt_lengths, strict=True)]
    targets = [token for row, start in zip(forest.rows, prompt_lengths, strict=True) for token in row[start:]]
    seen_U, owner_N = (
        torch.from_numpy(x).to(here.last_R.device) for x in np.unique(np.concatenate(at), return_inverse=True)
    )
    logp_UV = torch.log_softmax(model(**_inputs(here), logits_to_keep=seen_U).logits[0].float() / temperature, -1)
    # From the flat tensor, because the gradient of logp[owner, target] is much slower on a CPU.
    flat_N = owner_N * logp_UV.shape[1] + torch.tensor(targets, device=logp_UV.device)
    logp_N = logp_UV.flatten().index_select(0, flat_N)
    with torch.no_grad():
        entropy_N = -(logp_UV.exp() * logp_UV).sum(-1)[owner_N]
    lengths = [len(path) for path in at]
    return tuple(pad_sequence(x.split(lengths), batch_first=True) for x in (logp_N, entropy_N))  # type: ignore[return-value]


def _inputs(here: Forest) -> dict[str, Any]:
    return {
        "input_ids": here.input_ids_1T,
        "position_ids": here.position_ids_1T,
        "attention_mask": here.input_ids_1T.new_ones(1, 1, 1, 1),  # a 4-D mask stays as it is, and is ignored
        "use_cache": False,
        "forest": here,
    }


def _score_rows(model: torch.nn.Module, rows: Sequence[list[int]]) -> Tensor:
    """The same as separate rows, padded on the right. Shape (R,)."""
    config: Any = getattr(model, "module", model).config
    width, pad = max(map(len, rows)), config.get_text_config().pad_token_id
    input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=next(model.parameters()).device)
    lengths = torch.tensor([len(row) for row in rows], device=input_ids.device)
    mask = (torch.arange(width, device=input_ids.device) < lengths[:, None]).long()
    logits: Tensor = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    return logits.squeeze(-1)
