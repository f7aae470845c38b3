"""Small models with random weights and their tokenizers, for runs without weights to start from."""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pitlm.core.recipe import InitSection

PAD, UNK, END = "<|pad|>", "<|unk|>", "<|end|>"
ROLE_MARKS = ("<|system|>", "<|user|>", "<|assistant|>")
SMALL_CHAT_TEMPLATE = files("pitlm.models").joinpath("small_chat.jinja").read_text("utf-8")
"""Chat template of models made from scratch: one token marks each turn."""


def make_from_scratch(
    init: InitSection, texts: Iterable[str], folder: Path, *, seed: int, max_tokens: int, words: Iterable[str] = ()
) -> None:
    """Train a tokenizer on ``texts`` and save it with a randomly initialised model of the wanted shape.

    Args:
        max_tokens: the longest sequence that the model will see.
        words: the whole vocabulary of a word tokenizer, if it is known.
    """
    if init.tokenizer == "words":
        tokenizer = make_words_tokenizer(words or {word for text in texts for word in text.split()})
    else:
        tokenizer = _bpe_tokenizer(texts, init.vocabulary)
    width = {"hidden_size": init.hidden, "intermediate_size": init.mlp, "num_hidden_layers": init.layers}
    heads = {"num_attention_heads": init.heads, "num_key_value_heads": init.heads, "head_dim": init.head_dim}
    # The usual 0.02 suits wide models; for narrow ones it delays the learning of copying by hundreds of steps.
    drawn = {"initializer_range": init.hidden**-0.5, "tie_word_embeddings": True}
    ends = {"vocab_size": len(tokenizer), "max_position_embeddings": max_tokens, **special_ids(tokenizer)}
    config = AutoConfig.for_model(init.architecture, **width, **heads, **drawn, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The ids of a tokenizer that belong in a model's configuration, by their names in the configuration."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _wrap(core: Any, mark_unknown: bool) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNK if mark_unknown else None,
        extra_special_tokens=list(ROLE_MARKS),
        clean_up_tokenization_spaces=False,
        chat_template=SMALL_CHAT_TEMPLATE,
    )


def make_words_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate((PAD, UNK, END, *ROLE_MARKS, *sorted(set(words))))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(core, mark_unknown=True)


def _bpe_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, *ROLE_MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return _wrap(core, mark_unknown=False)
