"""Measures how much time an RL step saves by reading each prompt once, against TRL's unchanged RLOOTrainer.

For each shape, the stock trainer and ours take one whole RLOO step in turn, in one process. A step samples 64 answers
of 32 tokens, scores them with a reward that costs nothing, reads them with the policy and the reference model, and
computes the gradient. Both trainers start from the same weights and see the same prompts; each draws its own answers.
On equal answers their losses and gradients are equal (tests/method/test_rl_step.py). A ratio is stock / ours: above 1,
ours is faster.

Shapes: `p96` has a prompt of 96 tokens and a vocabulary of 8,192; `p512` has 512 and 32,768. Llama, 4 layers, width
128.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import paired, parser_of, save
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pitlm.method.rl_step import SharedPromptRLOOTrainer
from pitlm.models.loading import load_model, load_tokenizer, quiet

# isort: split
from trl import RLOOConfig, RLOOTrainer  # after pitlm, which quiets what it imports

SHAPES = {"p96": (96, 8_192), "p512": (512, 32_768)}
NEW_TOKENS, ANSWERS = 32, 64
KINDS: dict[str, type[RLOOTrainer]] = {"stock": RLOOTrainer, "ours": SharedPromptRLOOTrainer}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--rounds", type=int, default=5, help="Measured rounds, after one to warm up. Default: 5.")
    parser.add_argument("--group", type=int, default=8, help="G, the answers to one prompt. Default: 8.")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="Of the policy's weights.")
    options = parser.parse_args()
    quiet()
    warnings.simplefilter("ignore", FutureWarning)  # a warning of transformers about TRL
    figures = {}
    for name in options.shapes:
        figures[name] = measure(*SHAPES[name], options.group, options.rounds, options.dtype)
        f = figures[name]
        print(
            f"{name}  step x{f['step_ratio']:.2f}  ({f['stock_ms']:.0f} -> {f['ours_ms']:.0f} ms, of it sampling "
            f"{f['sampling_ms']:.0f} ms; without sampling x{f['rest_ratio']:.2f})",
            flush=True,
        )
    save(figures, options.json)


def measure(prompt_tokens: int, vocabulary: int, group: int, rounds: int, dtype: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base", prompt_tokens, vocabulary)
        trainers = {name: make_trainer(kind, base, Path(folder), group, dtype) for name, kind in KINDS.items()}
        for trainer in trainers.values():
            trainer.model.train()
        walls: dict[str, list[float]] = {name: [] for name in trainers}
        sampling: dict[str, list[float]] = {name: [] for name in trainers}
        rng = random.Random(0)
        for number in range(rounds + 1):
            prompts = [words(rng, prompt_tokens, vocabulary) for _ in range(ANSWERS // group)]
            batch = [{"prompt": prompt} for prompt in prompts for _ in range(group)]
            for name, trainer in trainers.items():
                torch.manual_seed(number)
                trainer.model.zero_grad()
                spent = Stopwatch(trainer)
                begin = time.perf_counter()
                trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
                wall = time.perf_counter() - begin
                if number:
                    walls[name].append(wall)
                    sampling[name].append(spent.stop())
        return {
            "step_ratio": paired(walls["stock"], walls["ours"]),
            "rest_ratio": paired(
                *([a - b for a, b in zip(walls[n], sampling[n], strict=True)] for n in ("stock", "ours"))
            ),
            **{f"{name}_ms": 1000 * statistics.median(walls[name]) for name in trainers},
            "sampling_ms": 1000 * statistics.median(sampling["ours"]),
            "rounds": rounds,
        }


class Stopwatch:
    """Measures the time that a step spends on sampling."""

    def __init__(self, trainer: RLOOTrainer) -> None:
        self.trainer, self.spent = trainer, 0.0
        generate: Callable[..., Any] = trainer._generate_single_turn

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            output = generate(*args, **kwargs)
            self.spent += time.perf_counter() - begin
            return output

        trainer._generate_single_turn = timed

    def stop(self) -> float:
        del self.trainer._generate_single_turn
        return self.spent


def words(rng: random.Random, count: int, vocabulary: int) -> str:
    return " ".join(f"w{rng.randrange(3, vocabulary)}" for _ in range(count))


def make_base(folder: Path, prompt_tokens: int, vocabulary: int) -> Path:
    names = ["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(3, vocabulary))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=prompt_tokens + NEW_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_trainer(kind: type[RLOOTrainer], base: Path, folder: Path, group: int, dtype: str) -> RLOOTrainer:
    tokenizer = load_tokenizer(base)
    return kind(
        model=load_model(base, tokenizer, dtype),
        reward_funcs=lambda completions, completion_ids, **kwargs: [float(ids[0] % 7) for ids in completion_ids],
        args=RLOOConfig(
            str(folder),
            per_device_train_batch_size=ANSWERS,
            num_generations=group,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            beta=0.05,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            disable_dropout=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w3"]}),
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    main()
