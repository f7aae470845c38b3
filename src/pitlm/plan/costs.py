"""The costs to read, learn and write tokens on some hardware: arithmetic, seconds and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from pitlm.core.recipe import Recipe
from pitlm.core.training_sections import TrainSection
from pitlm.plan.hardware import Hardware
from pitlm.plan.sizes import Shape, Workload

FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in nf4: four bits, a byte for each 64 weights, and four bytes for each 256 such bytes."""

JOINED = 2
"""Rank of an adapter over the run's base, as a multiple of the recipe's rank: it joins the adapters of two stages."""

LONGEST = 2.0
"""Length of a batch's longest answer, which is written last, over the mean length. Pocket world: 1.7 to 2.3."""


@dataclass
class StagePlan:
    """The costs of one stage.

    Attributes:
        trained: tokens read with gradient.
        generated: tokens written.
        peak: bytes of memory on one device.
    """

    name: str
    trained: float = 0.0
    generated: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    peak: float = 0.0

    def add(self, part: StagePlan, times: float) -> None:
        """Add a part of the stage that happens ``times`` times."""
        self.trained += times * part.trained
        self.generated += times * part.generated
        self.flops += times * part.flops
        self.seconds += times * part.seconds


class Reading(NamedTuple):
    """Tokens that a model reads in one go.

    Attributes:
        context: other tokens that each of them sees, on average.
        headed: how many of them pass the head.
    """

    tokens: float
    context: float
    headed: float = 0.0


class Costs:
    """One recipe, one shape, one workload and one kind of device. A method adds to a plan, or returns bytes."""

    def __init__(self, recipe: Recipe, shape: Shape, work: Workload, hardware: Hardware) -> None:
        self.recipe, self.shape, self.work, self.hardware = recipe, shape, work, hardware
        self.bytes = 2 if recipe.model.dtype == "bfloat16" else 4
        self.share = shape.trained_share(recipe.peft)
        self.passes = 2 + (recipe.peft is None)  # frozen weights have no gradient of their own
        data = recipe.data
        pairs = min(work.pairs, data.pairs or work.pairs)
        self.test, self.validation = pairs * data.test, pairs * data.validation
        rest = (pairs - self.test - self.validation) / sum(data.folds)
        self.folds = {name: rest * part for name, part in zip(("sft", "reward", "rl"), data.folds, strict=True)}
        self.limit = data.max_new_tokens or data.max_response_tokens
        self.x = min(work.prompt, data.max_prompt_tokens) + work.marks
        self.w, self.l = (min(y, data.max_response_tokens) + 1 for y in (work.chosen, work.rejected))
        self.y = min((self.w + self.l) / 2, self.limit)
        self.beside = self.x + self.l + work.marks  # x, y_ref and the request: the improver's prompt
        self.longest_x = data.max_prompt_tokens + work.marks
        self.longest_y = max(data.max_response_tokens, self.limit)
        self.longest_beside = self.longest_x + self.longest_y + work.marks

    def forward(self, reading: Reading) -> float:
        """FLOP of a pass without gradient."""
        attention = 4 * self.shape.layers * self.shape.heads * self.shape.head_dim * reading.context
        return reading.tokens * (2 * self.shape.linear + attention) + reading.headed * 2 * self.shape.head

    def _compute(self, plan: StagePlan, reading: Reading, rate: float, slower: float = 1.0) -> None:
        """Add the arithmetic. ``rate`` is the rate of layers on rows; ``slower`` corrects it for trees."""
        flops, head = self.forward(reading), self.forward(Reading(0, 0, reading.headed))
        plan.flops += flops
        plan.seconds += ((flops - head) * slower + head * self.hardware.head_factor) / (rate * self.hardware.devices)

    def encode(self, plan: StagePlan, rows: float) -> None:
        plan.seconds += rows * self.hardware.row_seconds

    def learn(self, plan: StagePlan, section: TrainSection, steps: float, each: Reading, tree: bool = False) -> None:
        """Take ``steps`` steps forward and back on ``each``. Layers below all adapters are read forward only."""
        hardware = self.hardware
        passes = steps * (self.passes + section.gradient_checkpointing)
        slower = hardware.tree_factor if tree else 1.0
        above = Reading(passes * self.share * each.tokens, each.context, passes * each.headed)
        self._compute(plan, above, hardware.train_flops, slower)
        below = Reading(steps * (1 - self.share) * each.tokens, each.context)
        self._compute(plan, below, hardware.forward_flops, slower)
        plan.trained += steps * each.tokens
        launches = hardware.layer_seconds * self.shape.layers * (1 + 2 * self.share) / 3 * section.accumulation
        plan.seconds += steps * (hardware.step_seconds + launches)

    def read(self, plan: StagePlan, reading: Reading, passes: float) -> None:
        """Read without gradient, in ``passes`` passes."""
        self._compute(plan, reading, self.hardware.forward_flops)
        plan.seconds += passes * (self.hardware.layer_seconds * self.shape.layers + self.hardware.step_seconds) / 3

    def write(self, plan: StagePlan, rows: float, prompt: float, batch: float, prefills: float | None = None) -> None:
        """Write ``rows`` answers to prompts of ``prompt`` tokens; ``prefills`` prompts are read (default: all).

        A place that an answer leaves is filled with the next, so only the last answers run with few beside them.
        """
        longest = min(self.limit, LONGEST * self.y)
        prefills = rows if prefills is None else prefills
        self.read(plan, Reading(prefills * prompt, prompt / 2), math.ceil(rows / batch))
        hardware, shape = self.hardware, self.shape
        weights = (shape.linear + shape.head) * self.bytes / hardware.devices
        steps = rows * self.y / min(rows, batch) + longest - self.y
        plan.seconds += steps * (hardware.decode_seconds * shape.layers + weights / hardware.bandwidth)
        cache = (prompt + self.y / 2) * shape.kv_elements * self.bytes
        flops = self.forward(Reading(1, prompt + self.y / 2, 1))
        token = (cache / hardware.bandwidth + flops / hardware.decode_flops) / hardware.devices
        plan.generated += rows * self.y
        plan.flops += rows * self.y * flops
        plan.seconds += rows * self.y * token

    def weights(self, models: float) -> float:
        """Bytes of ``models`` models; only the matrices of the layers are held in 4 bits."""
        linear, others = self.shape.linear, self.shape.parameters - self.shape.linear
        held = linear * (FOUR_BITS if self.recipe.quantize else self.bytes) + others * self.bytes
        return models * held / self.hardware.devices

    def readers(self, models: float) -> float:
        """Bytes of ``models`` models that are only read: with LoRA one base (or two) and an adapter for each model."""
        if self.recipe.peft is None:
            return self.weights(models)
        adapters = models * JOINED * self.shape.lora(self.recipe.peft) * 4 / self.hardware.devices
        return self.weights(1 + (self.recipe.model.reward_base is not None)) + adapters

    def states(self) -> float:
        """Bytes of a model in training: weights, gradients and AdamW's two moments; adapters are float32."""
        if self.recipe.peft is None:
            return 4 * self.weights(1)
        return self.weights(1) + 16 * self.shape.lora(self.recipe.peft) / self.hardware.devices

    def activations(self, section: TrainSection, tokens: float) -> float:
        """Bytes kept for the gradient of a micro-batch of ``tokens`` tokens; with checkpointing, mostly one layer's."""
        shape = self.shape
        wide = 8 * shape.hidden + 4 * shape.mlp + 2 * shape.kv_heads * shape.head_dim
        layer, layers = tokens * (wide * self.bytes + 16 * shape.hidden), shape.layers * self.share
        if section.gradient_checkpointing:
            return layer + layers * tokens * shape.hidden * self.bytes
        return layers * layer

    def logits(self, tokens: float) -> float:
        """Bytes of logits: as computed, in float32, as log-probabilities, and as gradient."""
        return tokens * self.shape.vocabulary * (self.bytes + 12)

    def cache(self, rows: float, tokens: float) -> float:
        return rows * tokens * self.shape.kv_elements * self.bytes / self.hardware.devices


def tree_tokens(x: float, w: float, l: float, marks: float) -> float:
    """Tokens of Eq. 2's four rows as one tree: x, then each reference with its request, then each candidate twice."""
    return x + (l + marks) + (w + marks) + 2 * (w + l)
