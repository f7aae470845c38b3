"""Writes small GGUF files with llama.cpp's own package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16, "num_attention_heads": 4}
KEY_HEADS, WINDOW, THETA = 2, 512, 50_000.0
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What llama.cpp calls the weights of a Llama."""


def gguf_name(name: str) -> str:
    name = name.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return NAMES[name] + ".weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key matrix as llama.cpp orders them: the two halves of each head interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file: Path, tokenizer_folder: Path, kind: GGMLQuantizationType, architecture: str = "llama") -> Path:
    """Write a random Llama with this tokenizer to a GGUF file; the weights as stored go to a checkpoint beside the file."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        **SIZES,
        num_key_value_heads=KEY_HEADS,
        vocab_size=len(tokenizer),
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    special = {token["id"] for token in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    weights = model.state_dict()
    weights.pop("lm_head.weight")
    for name, weight in weights.items():
        heads = config.num_attention_heads if "q_proj" in name else KEY_HEADS if "k_proj" in name else None
        values = weight.numpy() if heads is None else rotated(weight.numpy(), heads)
        stored = kind if values.ndim == 2 else GGMLQuantizationType.F32
        data = quantize(values, stored)
        writer.add_tensor(gguf_name(name), data, raw_dtype=stored)
        read = torch.from_numpy(dequantize(data, stored).copy()).view(values.shape)
        # Undo the order of llama.cpp by asking where each row went.
        order = np.arange(len(values)) if heads is None else rotated(np.arange(len(values))[:, None], heads)[:, 0]
        weight[torch.from_numpy(order)] = read
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.save_pretrained(file.with_suffix(""))
    return file
