"""Measures how fast SmolLM2-135M writes: our decoder, transformers' `generate`, its continuous batching, and vLLM.

All write greedy answers in float32 to the same questions of the house style, as the recipe `smol` asks them. An answer
has at most 64 tokens, and most end earlier. Each writes about `--batch` rows at once: `generate` in batches, in the
order of the file, while the others refill the places of finished rows. The first three run in turn in one process.
vLLM, in the build for CPUs, runs afterwards without compilation, in an environment of its own (3.6 GB under build/real,
made the first time). Loading and a first short batch are not counted. Tokens a second are those of the answers.

A ratio is the other's seconds / ours: above 1, ours is faster. `same_answers` is the share of the answers that equal
`generate`'s, token for token.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from common import ROOT, house_style_prompts, paired, parser_of, save, smollm2
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from pitlm.data.template import Template, encode_prompts
from pitlm.engines.decoder import write_batch
from pitlm.engines.generators import generate
from pitlm.models.loading import load_model, load_tokenizer, quiet

NEW_TOKENS = 64
WARM_UP = 4
"""Rows of the batch that is written first, uncounted."""

Ids = list[list[int]]


def asked(tokenizer: Any, rows: int) -> Ids:
    """The token ids of this many prompts of the house style."""
    return encode_prompts(tokenizer, [Template("better").policy_messages(x) for x in house_style_prompts(rows)])


def writers(
    model: PreTrainedModel, paged: PreTrainedModel, tokenizer: Any, batch: int
) -> dict[str, Callable[[Ids], Ids]]:
    """Three ways to write completions of token ids, by name; ours is the first."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id

    def ours(rows: Ids) -> Ids:
        how: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "temperature": 0.0, "seed": 0, "batch_size": batch}
        return generate(model, tokenizer, rows, **how)

    def plain(rows: Ids) -> Ids:
        model.set_attn_implementation("sdpa")
        how: dict[str, Any] = {"pad_token_id": pad, "eos_token_id": end, "max_new_tokens": NEW_TOKENS}
        batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        return [ids for own in batches for ids in write_batch(model, own, do_sample=False, **how)]

    def continuous(rows: Ids) -> Ids:
        config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=end, pad_token_id=pad)
        limits = ContinuousBatchingConfig(max_requests_per_batch=batch)
        found = paged.generate_batch(rows, generation_config=config, continuous_batching_config=limits)
        return [one.generated_tokens for one in found.values()]

    return {"pitlm": ours, "generate": plain, "continuous batching": continuous}


def by_vllm(folder: str, rows: Ids, end: int, rounds: int, batch: int) -> tuple[list[float], Ids, str]:
    """Seconds of each round, completions, and vLLM with its version."""
    sys.path.insert(0, str(ROOT / "tests"))
    from real_engines import VLLM_CPU, engine

    vllm = engine("vllm")
    settings = {**VLLM_CPU, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    told = {"model": folder, "rows": rows, "end": end, "new_tokens": NEW_TOKENS, "rounds": rounds, "first": WARM_UP}
    made = vllm.ask("write_vllm.py", {**told, "batch": batch}, **settings)
    return made["seconds"], made["completions"], f"vLLM {vllm.version}, CPU"


def measure(rows: int, rounds: int, batch: int) -> dict[str, Any]:
    quiet()
    folder = smollm2()
    tokenizer = load_tokenizer(folder)
    model, paged = (load_model(folder, tokenizer, writes=True).eval() for _ in range(2))
    paged.set_attn_implementation("paged|sdpa")
    ids = asked(tokenizer, rows)
    walls: dict[str, list[float]] = {}
    written: dict[str, Ids] = {}
    ways, own = writers(model, paged, tokenizer, batch), f"transformers {version('transformers')}"
    peers = {"generate": f"`generate`, {own}", "continuous batching": f"continuous batching, {own}"}
    for number in range(rounds + 1):
        for name, write in ways.items():
            begin = time.perf_counter()
            made = write(ids if number else ids[:WARM_UP])
            if number:
                walls.setdefault(name, []).append(time.perf_counter() - begin)
                written[name] = made
    walls["vllm"], written["vllm"], peers["vllm"] = by_vllm(str(folder), ids, tokenizer.eos_token_id, rounds, batch)
    tokens = sum(map(len, written["generate"]))
    return {
        "rows": rows,
        "rounds": rounds,
        "batch": batch,
        "mean_tokens": tokens / rows,
        "threads": torch.get_num_threads(),
        "writers": {
            name: {
                "peer": peers.get(name, ""),
                "seconds": statistics.median(taken),
                "tokens_per_second": sum(map(len, written[name])) / statistics.median(taken),
                "ratio": paired(taken, walls["pitlm"]),
                "same_answers": sum(a == b for a, b in zip(written[name], written["generate"], strict=True)) / rows,
            }
            for name, taken in walls.items()
        },
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="Rows that are written at once. Default: 64.")
    options = parser.parse_args()
    figures = measure(options.rows, options.rounds, options.batch)
    for name, one in figures["writers"].items():
        print(
            f"{name:20} {one['seconds']:6.1f} s  {one['tokens_per_second']:6.0f} tokens/s  x{one['ratio']:.2f}  "
            f"same answers {one['same_answers']:.1%}"
        )
    save(figures, options.json)


if __name__ == "__main__":
    main()
