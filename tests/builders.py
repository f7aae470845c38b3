"""Tiny models, tokenizers and workbenches, built where a test needs them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from pitlm.core.nouns import Preference, Prompt
from pitlm.core.recipe import InitSection
from pitlm.core.training_sections import RLSection, TrainSection
from pitlm.method.setting import Workbench
from pitlm.models.loading import Card, load_tokenizer, save
from pitlm.models.scratch import make_from_scratch

ASK = "Please write a better answer."
TEXTS = [
    "what is the price of the red lamp ?",
    "the price is nine . happy to help .",
    "silly question . read it yourself .",
    "You are a shop clerk. Please write a better answer.",
    "is it small ? it is small .",
    "Is it small?\n\nYes, it's small; there are many of them (12).",
]

LLAMA3_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

QWEN3_TEMPLATE = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" %}
        {%- set ns.searching = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".strip()


def _byte_level(special: list[str], plain: tuple[str, ...] = (), bos: str | None = None) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300 + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS * 4, trainer)
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    if bos is not None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return core


def _model(architecture: str, tokenizer, folder: Path, *, bos: int | None, ends: list[int], tie: bool = False) -> Path:
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=bos,
        eos_token_id=ends[0],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    # Instruct models ship with more than one end token, and with sampling settings.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=20,
        repetition_penalty=1.5,
        bos_token_id=bos,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama3(folder: Path) -> Path:
    """Shaped like Llama 3 Instruct: begin-of-text, header ids, untied head, no pad token but a reserved token."""
    bos, end, text_end = "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"
    special = [bos, text_end, "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>", end]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special, bos=bos), bos_token=bos, eos_token=end, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = LLAMA3_TEMPLATE
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (end, text_end)]
    return _model("llama", tokenizer, folder, bos=tokenizer.bos_token_id, ends=ends)


def qwen3(folder: Path) -> Path:
    """Shaped like Qwen3: ChatML, thinking blocks, tied head, pad token that is also a second end token."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special, ("<think>", "</think>")),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = QWEN3_TEMPLATE
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    return _model("qwen3", tokenizer, folder, bos=None, ends=ends, tie=True)


def gpt_style(folder: Path) -> Path:
    """A base model: one special token for everything, no chat template, pad equal to end."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|endoftext|>"]),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    return _model("llama", tokenizer, folder, bos=None, ends=[tokenizer.eos_token_id])


def words(folder: Path) -> Path:
    """A model as in the pocket world: each word is a token."""
    init = InitSection(layers=1, hidden=16, heads=2, mlp=32, tokenizer="words")
    make_from_scratch(init, [*TEXTS, ASK], folder, seed=0, max_tokens=256)
    return folder


def bpe(folder: Path) -> Path:
    """A model with a tokenizer trained on text."""
    init = InitSection(layers=1, hidden=16, heads=2, mlp=32, tokenizer="bpe", vocabulary=300)
    make_from_scratch(init, TEXTS * 4, folder, seed=0, max_tokens=512)
    return folder


TINY_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def random_model(auto, architecture: str, **shape):
    """Random weights, so large that each token changes the output visibly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(AutoConfig.for_model(architecture, **shape))
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


FAMILIES = {"words": words, "bpe": bpe, "llama3": llama3, "qwen3": qwen3, "gpt": gpt_style}
CHAT = ("words", "bpe", "llama3", "qwen3", "gpt")


def generator_checkpoint(base: Path, folder: Path, kind: str, max_new_tokens: int = 8) -> Path:
    """A causal checkpoint as a training stage writes it, with the weights of ``base``."""
    tokenizer = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    save(model, tokenizer, Card(kind, ASK, max_new_tokens), folder)
    return folder


def scorer_checkpoint(base: Path, folder: Path, kind: str, seed: int = 1) -> Path:
    """A one-logit checkpoint as a training stage writes it; its head is random, from ``seed``."""
    tokenizer = load_tokenizer(base)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
        model.config.pad_token_id = tokenizer.pad_token_id
        torch.nn.init.normal_(model.score.weight)
    save(model, tokenizer, Card(kind, ASK, 8), folder)
    return folder


def workbench(folder: Path, start: Path, kind: str = "improver", **kwargs) -> Workbench:
    folder.mkdir(parents=True, exist_ok=True)
    max_new_tokens = kwargs.pop("max_new_tokens", 6)
    return Workbench(
        folder=folder,
        start=start,
        tokenizer=load_tokenizer(start),
        card=Card(kind, ASK, max_new_tokens),
        seed=kwargs.pop("seed", 0),
        **kwargs,
    )


def train_section(**kwargs) -> TrainSection:
    return TrainSection(**{"learning_rate": 1e-2, "batch_size": 4, "warmup": 0.0, "log_every": 1, **kwargs})


def rl_section(**kwargs) -> RLSection:
    return RLSection(
        **{"learning_rate": 1e-2, "batch_size": 8, "group": 4, "max_steps": 2, "warmup": 0.0, "beta": 0.1, **kwargs}
    )


def preference(
    text: str = "is it small ?", chosen: str = "the price is nine .", rejected: str = "silly question ."
) -> Preference:
    return Preference(Prompt.of(text), chosen, rejected)
