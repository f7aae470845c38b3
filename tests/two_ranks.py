"""Training for `tests/method/test_launch.py` on one or two ranks: ``python -m two_ranks FOLDER BASE [sharded]``."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from builders import ASK, preference, rl_section, train_section, workbench
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from pitlm.core.nouns import Prompt
from pitlm.core.recipe import LoraSection
from pitlm.data.template import Template
from pitlm.method import common, rl
from pitlm.method.rl_step import SharedPromptRLOOTrainer
from pitlm.method.supervised import LESSONS, train_on_rows
from pitlm.method.watch import Probe
from pitlm.models.loading import quiet

WORDS = [
    "the price is nine",
    "happy to help",
    "it is small",
    "silly question",
    "read it yourself",
    "nine",
    "red",
    "lamp",
]
PAIRS = [preference(f"is it {w} ?", w, l) for w in WORDS for l in WORDS if w != l][:24]
GROUP = 4


class Keeper(TrainerCallback):
    """Saves, on each rank, its final weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, args, state, control, model=None, **kwargs):
        weights = {
            name.removeprefix("module."): weight.full_tensor() if isinstance(weight, DTensor) else weight
            for name, weight in model.state_dict().items()
        }
        torch.save(weights, self.folder / f"ended-{rank()}.pt")


def rank() -> str:
    return os.environ.get("RANK", "0")


def scripted(self, prompt_ids, images, fields):
    """Samples that depend only on the prompt and the place in its group; real samples depend on the rank."""
    drawn = []
    for place, prompt in enumerate(prompt_ids):
        rng = random.Random(repr((list(prompt), place % GROUP)))
        drawn.append([*rng.choices(range(6, 20), k=rng.randint(1, 5)), self.processing_class.eos_token_id])
    return drawn


def train_all(root: Path, base: Path) -> None:
    for name, kind, section in (
        ("sft", "improver", train_section(batch_size=8, accumulation=2, epochs=2)),
        ("lora", "improver", train_section(batch_size=8)),
        ("reward", "reward", train_section(batch_size=8, max_steps=3)),
        ("gap", "gap", train_section(batch_size=4, max_steps=4)),
        ("rl", "improver", None),
    ):
        peft = LoraSection(r=4, alpha=8) if name == "lora" else None
        bench = workbench(root / name, base, kind, peft=peft, seed=3)
        genuine = common.callbacks
        with patch.object(
            common, "callbacks", lambda b, title, genuine=genuine: [*genuine(b, title), Keeper(b.folder)]
        ):
            if section is None:
                train_curriculum(bench)
            else:
                rows_of = LESSONS[kind][1]
                rows, held_out = (rows_of(pairs, bench.tokenizer, Template(ASK)) for pairs in (PAIRS, PAIRS[:8]))
                train_on_rows(kind, rows, held_out, section, bench)


def train_curriculum(bench) -> None:
    asked = []

    def score(rows, conversations):
        asked.extend(rows)
        return torch.tensor([-sum(row[-4:]) / 10 for row in rows])

    conversations = [Template(ASK).improver_messages(Prompt.of("what is it ?"), word) for word in WORDS]
    probe = Probe(lambda held_out, texts: [float(len(text)) for text in texts], conversations[:2])
    section = rl_section(batch_size=16, accumulation=2, group=GROUP, max_steps=3, probe_every=2)
    with patch.object(SharedPromptRLOOTrainer, "_generate_single_turn", scripted):
        rl.train_rl(conversations, score, section, bench, title="RL", anchor=bench.start, probe=probe)
    (bench.folder / f"asked-{rank()}.json").write_text(json.dumps(asked))


def shard_without_gpus() -> None:
    """accelerate uses FSDP only on GPUs and silently replicates elsewhere; torch's own FSDP works with gloo."""
    genuine = AcceleratorState.__init__

    def init(self, *args, **kwargs):
        known = PartialState(cpu=True)._shared_state
        if known["distributed_type"] == DistributedType.MULTI_CPU:
            known["distributed_type"] = DistributedType.MULTI_GPU
        genuine(self, *args, **kwargs)
        assert self.is_fsdp2

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    quiet()
    if sys.argv[3:] == ["sharded"]:
        shard_without_gpus()
    train_all(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
