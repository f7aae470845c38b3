"""This machine's rates, measured for a few seconds on a model of the planned shape.

A shape of the same width, with few layers and a small vocabulary, stands in for a large one: rates are per FLOP.
"""

import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from pitlm.core.errors import InputError
from pitlm.core.recipe import Recipe
from pitlm.core.training_sections import TrainSection
from pitlm.engines.generators import generate
from pitlm.method.setting import Workbench
from pitlm.method.supervised import GapRow, GapTrainer, PairRow, PairTrainer, scorer_trainer, sft_trainer
from pitlm.models.loading import Card, Kind, quiet
from pitlm.models.machine import device
from pitlm.models.scratch import make_words_tokenizer
from pitlm.models.trees import enable_trees
from pitlm.plan.costs import Costs, Reading, tree_tokens
from pitlm.plan.hardware import Hardware, accelerators, assumed, memory_bytes
from pitlm.plan.sizes import CONFIG_KEYS, Shape, Workload

LAYERS, VOCABULARY = 2, 8_192
FLOP_PER_STEP = {"cpu": 1e11, "cuda": 2e13}
"""Most FLOP of a measured step. Such a step is short, but keeps the machine as busy as training does."""

CPU_PARAMETERS = 1e9
"""Larger models are not trained on a processor; to measure one would take minutes and much memory."""

KERNELS = 40
"""Bytes that oneDNN's compiled products take on a processor, relative to the weights of the head. smol held 2.1 GB, 37
times its head, beside what its stages need; the quickstart, with a small head, held nothing."""

NEW_TOKENS, REPEATS = 12, 5
WORDS = [f"w{number}" for number in range(50)]


def measure_rates(recipe: Recipe, work: Workload, clock: Callable[[], float] = time.perf_counter) -> Hardware:
    """Rates of this machine for a recipe's model and the lengths of its pairs.

    Args:
        clock: wall time, or the processor time of one thread, which other programs disturb less.

    Raises:
        InputError: a model of more than 10^9 parameters and no accelerator.
    """
    quiet()
    whole, where = Shape.of_model(recipe.model), device()
    shape = replace(whole, layers=min(whole.layers, LAYERS), vocabulary=min(whole.vocabulary, VOCABULARY))
    costs = Costs(recipe, shape, work, assumed("l4", recipe.model.dtype))
    if where.type == "cpu" and whole.parameters > CPU_PARAMETERS:
        raise InputError(
            f"found {whole.parameters / 1e9:.1f} billion parameters and no GPU, expected one, or the name of a "
            "card to plan for: --hardware h100"
        )
    section = recipe.policy_sft
    row = round(costs.x + costs.w)
    most = FLOP_PER_STEP[where.type] / (6 * shape.linear + 6 * shape.head) / row
    rows = max(4, min(max(section.batch_size // section.accumulation, 16), round(most)))  # few would be mostly noise
    few = max(1, rows // 16)
    together = max(2, min(recipe.evaluation.batch_size, 4 * rows))
    parts = [round(length) for length in (costs.x, costs.w, costs.l, work.marks)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        measure = _Measure(shape, recipe, clock)
        pair, fixed = _line(lambda pairs: measure.rewards(pairs, row), rows // 2, few)
        layer = 0.0
        if whole.layers > shape.layers:  # what of the fixed seconds grows with the layers
            thin = _Measure(replace(shape, layers=1), recipe, clock)
            layer = max(fixed - _line(lambda pairs: thin.rewards(pairs, row), rows // 2, few)[1], 0.0)
        read = pair / 2  # a pair has two rows
        head = measure.training(rows, row) - fixed - rows * read
        forward, _ = _line(lambda rows: measure.forward(rows, row), rows, few)
        triples = max(2, rows // 4)
        tree = (measure.trees(triples, *parts) - fixed) / (triples * tree_tokens(*parts))
        token, one_step = _line(lambda rows: measure.decoding(rows, row), together, max(1, together // 8))
        bandwidth = measure.bandwidth()
    flops, weights = costs.forward(Reading(row, row / 2)), (shape.linear + shape.head) * costs.bytes
    train_flops = costs.passes * flops / read
    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    here = {"name": name, "memory": memory_bytes(), "kernels": KERNELS * whole.head * costs.bytes}
    return Hardware(
        **(accelerators()[0] if where.type == "cuda" else here),
        train_flops=train_flops,
        forward_flops=flops / forward,
        decode_flops=costs.forward(Reading(1, 0.5, 1)) / token,
        bandwidth=bandwidth,
        head_factor=max(head * train_flops / (2 * costs.passes * rows * row * shape.head), 0.1),
        step_seconds=max(fixed - layer * shape.layers, 0.0),
        layer_seconds=layer,
        decode_seconds=max((one_step - weights / bandwidth) / shape.layers, 0.0),
        tree_factor=max(tree / (read / row), 1.0),
        measured=True,
    )


def _line(seconds: Callable[[int], float], many: int, few: int) -> tuple[float, float]:
    """Seconds of each item, and fixed seconds of a step. For ``many`` items they add up to the measured seconds."""
    of_many, of_few = (max(seconds(count), 1e-6) for count in (many, few))
    each = min(max((of_many - of_few) / (many - few), of_many / many / 10), of_many / many)
    return each, of_many - many * each


class _Measure(TrainerCallback):
    """Medians of a few repeats, on models with random weights. As a trainer's callback, it times the steps."""

    def __init__(self, shape: Shape, recipe: Recipe, clock: Callable[[], float]) -> None:
        self.shape, self.dtype, self.clock, self.device = shape, recipe.model.dtype, clock, device()
        # Each layer that is measured is one that is trained.
        self.peft = recipe.peft and recipe.peft.model_copy(update={"target_modules": "all-linear", "quantize": None})
        self.tokenizer = make_words_tokenizer(WORDS)
        sizes = {key: getattr(shape, name) for name, key in CONFIG_KEYS.items()}
        special = {"pad_token_id": 0, "eos_token_id": 1, "num_labels": 1}
        config = AutoConfig.for_model("llama", **sizes, **special, max_position_embeddings=32_768)
        kind = getattr(torch, self.dtype)
        self.model: Any = AutoModelForCausalLM.from_config(config, dtype=kind).to(self.device)
        self.scorer: Any = AutoModelForSequenceClassification.from_config(config, dtype=kind).to(self.device)
        enable_trees(self.scorer)
        self.times: list[float] = []

    def on_step_begin(self, *told: Any, **more: Any) -> None:
        self.times.append(self.now())

    def now(self) -> float:
        """The time when the device has finished all its work so far."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    def median(self, work: Callable[[], object]) -> float:
        """Median seconds of some work. The first time is left out, because it warms the device up."""
        times = [self.now()]
        for _ in range(REPEATS + 1):
            work()
            times.append(self.now())
        return statistics.median(after - before for before, after in pairwise(times[1:]))

    def ids(self, count: int) -> list[int]:
        """Random tokens that neither pad nor end a row."""
        ids: list[int] = torch.randint(2, self.shape.vocabulary, (count,)).tolist()
        return ids

    def rewards(self, pairs: int, row: int) -> float:
        """Seconds of a step of R_P, by a stage's own trainer, whose overhead is much of a small model's step."""
        kind = partial(scorer_trainer, PairTrainer, copy.deepcopy(self.scorer))
        return self._steps("reward", pairs, kind, lambda: PairRow(self.ids(row), self.ids(row)))

    def training(self, rows: int, row: int) -> float:
        """Seconds of a step of SFT."""
        half, kind = row // 2, partial(sft_trainer, copy.deepcopy(self.model))
        return self._steps("policy", rows, kind, lambda: (self.ids(half), self.ids(row - half)))

    def trees(self, triples: int, x: int, w: int, l: int, marks: int) -> float:
        """Seconds of a step on Eq. 2's four rows of ``triples`` triples."""

        def make() -> GapRow:
            prompt, y_w, y_l, ask = (self.ids(length) for length in (x, w, l, marks))
            pairs = ((y_l, y_w), (y_w, y_w), (y_l, y_l), (y_w, y_l))
            return GapRow(*(prompt + y_ref + ask + y for y_ref, y in pairs))

        return self._steps("gap", triples, partial(scorer_trainer, GapTrainer, copy.deepcopy(self.scorer)), make)

    def _steps(self, kind: Kind, batch: int, trainer_of: Callable[..., Any], make: Callable[[], Any]) -> float:
        """Median seconds of the steps of a trainer on rows that ``make`` makes."""
        section = TrainSection(learning_rate=1e-4, batch_size=batch)  # checkpointing is planned as one more pass
        self.times = []
        rows = [make() for _ in range((REPEATS + 2) * batch)]
        with tempfile.TemporaryDirectory() as folder:
            here, card = Path(folder), Card(kind, "", 1)
            bench = Workbench(here, here, self.tokenizer, card, 0, self.dtype, self.peft)
            trainer = trainer_of(rows, rows[:1], section, bench)
            trainer.add_callback(self)
            trainer.args.save_strategy = SaveStrategy.NO
            trainer.train()
        return statistics.median(after - before for before, after in pairwise(self.times[1:]))  # the first warms up

    def forward(self, rows: int, row: int) -> float:
        """Seconds of a pass without gradient."""
        ids = torch.randint(2, self.shape.vocabulary, (rows, row), device=self.device)
        with torch.inference_mode():
            return self.median(partial(self.scorer, input_ids=ids, use_cache=False))

    def decoding(self, rows: int, row: int) -> float:
        """Seconds of one step of decoding ``rows`` rows."""
        prompts = [self.ids(row) for _ in range(rows)]

        def write(count: int) -> None:
            generate(self.model, self.tokenizer, prompts, max_new_tokens=count, temperature=1, seed=0, batch_size=rows)

        few, many = (self.median(partial(write, count)) for count in (2, NEW_TOKENS))
        return (many - few) / (NEW_TOKENS - 2)

    def bandwidth(self) -> float:
        """Bytes per second, read and written, of a copy in memory."""
        source = torch.zeros(8_000_000, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.median(lambda: target.copy_(source))
