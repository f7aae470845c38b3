"""Measures how much time and memory the gap model saves by reading rows as trees.

Each shape runs in a process of its own. Within a shape, the variants run in turn on the same texts:

* a training step of Eq. 2 (collation, forward, backward, AdamW), with the tree, with four separate rows, and with TRL's
  own RewardTrainer and its pairwise loss on the same four rows;
* scoring 8 candidates and the reference itself under one (x, y_ref), with the tree and with separate rows.

A ratio is rows / tree, so above 1 the tree is faster or smaller. A time ratio is the median of the rounds' ratios. The
*bound* is the number of tokens in separate rows, without padding, over the number of tokens in the tree: fewer tokens
alone can save no more. The share of the bound is the smaller of the shares in training and in scoring. Peak memory is
the most that the process holds during one training step, minus the memory that it held before (on a GPU: allocated
memory).

Shapes: `pocket` is the quickstart's model on its own pairs. The others use layers of Qwen2.5-0.5B's shape: `hh` has
the lengths of 1,000 pairs of HH-RLHF (hh_lengths.csv), `tldr` x = 350 and y = 35 tokens, `long` x = 1500 and y = 200
tokens.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import paired, parser_of, save
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from pitlm.core.equations import gap_loss
from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe import InitSection
from pitlm.core.recipe_file import load_recipe
from pitlm.data.dataset import load_preferences
from pitlm.data.template import Template
from pitlm.method.supervised import GapRow, gap_rows, tree_batch
from pitlm.models.forest import shared_prefix
from pitlm.models.loading import load_model, load_tokenizer, quiet
from pitlm.models.scratch import make_from_scratch
from pitlm.models.trees import enable_trees, score_ids, score_tree
from pitlm.worlds import pocket as world

CANDIDATES = 8
JOBS = [("train", "rows"), ("train", "tree"), ("train", "trl"), ("score", "rows"), ("score", "tree")]
PAD, END, VOCABULARY = 0, 1, 4096
QWEN_2_5_0_5B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "vocab_size": VOCABULARY,  # the original 151,936 would only fill memory: nothing generates tokens here
    "pad_token_id": PAD,
    "eos_token_id": END,
    "num_labels": 1,
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Rows = list[list[int]]
Sizes = list[tuple[int, int, int]]


class Round(NamedTuple):
    """The texts of one round: triples for training, rows for scoring."""

    triples: list[GapRow]
    scored: Rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--pairs", type=Path, metavar="PATH", help="Take the lengths of `hh` from these pairs.")
    parser.add_argument("--rounds", type=int, default=9, help="Measured rounds, after one to warm up. Default: 9.")
    parser.add_argument("--layers", type=int, default=1, help="Number of layers (Qwen2.5-0.5B has 24). Default: 1.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--scale", type=int, default=1, help="Factor on the texts of a round, for GPUs. Default: 1.")
    options = parser.parse_args()
    figures = {}
    # One process for each shape: measuring the peak changes the allocator, which would slow down the next shape.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
        for name in options.shapes:
            figures[name] = alone.submit(measure, name, options).result()
            print(describe(name, figures[name]), flush=True)
    save(figures, options.json)


def describe(name: str, f: dict[str, float]) -> str:
    return (
        f"{name:7} training  x{f['train_ratio']:.2f} (bound {f['token_ratio']:.2f}, {f['train_bound_share']:.0%}; "
        f"TRL's RewardTrainer x{f['trl_ratio']:.2f})  "
        f"scoring x{f['score_ratio']:.2f} (bound {f['score_token_ratio']:.2f}, {f['score_bound_share']:.0%})\n"
        f"        peak memory x{f['peak_ratio']:.2f} ({f['peak_mib_rows']:.0f} -> {f['peak_mib_tree']:.0f} MiB)  "
        f"padding {f['padding_rows']:.1%} -> {f['padding_tree']:.1%}  "
        f"step {f['train_ms_rows']:.0f} -> {f['train_ms_tree']:.0f} ms, "
        f"scoring {f['score_ms_rows']:.0f} -> {f['score_ms_tree']:.0f} ms"
    )


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    quiet()
    warnings.simplefilter("ignore", FutureWarning)  # a warning of transformers about TRL
    from trl import RewardConfig, RewardTrainer  # after pitlm, which quiets what it imports

    with tempfile.TemporaryDirectory() as folder:
        make, rounds = SHAPES[name]
        rowwise, texts = make(options, Path(folder)), rounds(options, Path(folder))
        tree = type(rowwise)(rowwise.config)
        tree.load_state_dict(rowwise.state_dict())
        enable_trees(tree)
        trl = RewardTrainer(
            model=type(rowwise)(rowwise.config),
            args=RewardConfig(
                output_dir=folder, report_to="none", use_cpu=DEVICE.type == "cpu", max_length=None, disable_tqdm=True
            ),
            train_dataset=Dataset.from_list([{"chosen_ids": [END], "rejected_ids": [END]}]),
            processing_class=load_tokenizer(pocket_base(Path(folder))),
        )
        models = {"tree": tree, "rows": rowwise, "trl": trl.model}
        for model in models.values():
            model.to(DEVICE, getattr(torch, options.dtype)).train()
        optimizers = {key: torch.optim.AdamW(model.parameters(), lr=1e-5) for key, model in models.items()}

        def losses(key: str, triples: list[GapRow]) -> torch.Tensor:
            if key == "trl":
                pairs = [p for t in triples for p in ((t.wl, t.ll), (t.ww, t.lw))]
                batch = trl.data_collator([{"chosen_ids": a, "rejected_ids": b} for a, b in pairs])
                loss: torch.Tensor = trl.compute_loss(trl.model, {k: v.to(DEVICE) for k, v in batch.items()})
                return loss
            if key == "tree":
                scores = score_tree(tree, tree_batch(GapRow._fields, [t._asdict() for t in triples])["forest"])
            else:
                scores = row_scores(rowwise, [row for part in zip(*triples, strict=True) for row in part])
            return gap_loss(*scores.float().chunk(4))

        def train(key: str, triples: list[GapRow]) -> None:
            losses(key, triples).backward()
            optimizers[key].step()
            optimizers[key].zero_grad()

        def score(key: str, rows: Rows) -> None:
            if key == "tree":
                score_ids(tree, rows)
            else:
                score_rows(rowwise, rows)

        walls: dict[tuple[str, str], list[float]] = {}
        for number, text in enumerate(texts):
            for job, key in JOBS:
                work = train if job == "train" else score
                wall = seconds(lambda: work(key, text.triples if job == "train" else text.scored))  # noqa: B023
                if number:
                    walls.setdefault((job, key), []).append(wall)
        peaks = {key: peak_mib(lambda: train(key, texts[-1].triples)) for key in ("rows", "tree")}  # noqa: B023
    return summary(walls, texts[1:], peaks)


def summary(walls: dict[tuple[str, str], list[float]], texts: list[Round], peaks: dict[str, float]) -> dict[str, float]:
    rows = {"train": [[row for t in text.triples for row in t] for text in texts], "score": [t.scored for t in texts]}
    figures: dict[str, float] = {}
    for job, batches in rows.items():
        bounds = [sum(map(len, batch)) / distinct(batch) for batch in batches]
        ratios = [a / b for a, b in zip(walls[job, "rows"], walls[job, "tree"], strict=True)]
        figures[f"{job}_ratio"] = paired(walls[job, "rows"], walls[job, "tree"])
        figures["token_ratio" if job == "train" else "score_token_ratio"] = statistics.median(bounds)
        figures[f"{job}_bound_share"] = statistics.median(a / b for a, b in zip(ratios, bounds, strict=True))
        for key in ("rows", "tree"):
            figures[f"{job}_ms_{key}"] = 1000 * statistics.median(walls[job, key])
    figures["bound_share"] = min(figures["train_bound_share"], figures["score_bound_share"])
    figures["trl_ratio"] = paired(walls["train", "trl"], walls["train", "tree"])
    figures["train_ms_trl"] = 1000 * statistics.median(walls["train", "trl"])
    figures["peak_ratio"] = peaks["rows"] / peaks["tree"]
    figures.update({f"peak_mib_{key}": peak for key, peak in peaks.items()})
    padded = sum(len(batch) * max(map(len, batch)) for batch in rows["train"])
    figures["padding_rows"] = 1 - sum(len(row) for batch in rows["train"] for row in batch) / padded
    figures["padding_tree"] = 0.0  # a forest has no padding
    figures["rounds"] = len(texts)
    return figures


def distinct(rows: Rows) -> int:
    """Count tokens, but common beginnings only once: the fewest tokens that a tree can read."""
    ordered = sorted(rows)
    return sum(map(len, rows)) - sum(map(shared_prefix, ordered, ordered[1:]))


def row_scores(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Score separate rows, padded on the right; shape (len(rows),)."""
    width = max(map(len, rows))
    pad = model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=DEVICE)
    scores: torch.Tensor = model(input_ids=ids, attention_mask=(ids != pad).long(), use_cache=False).logits[:, 0]
    return scores


@torch.inference_mode()
def score_rows(model: PreTrainedModel, rows: Rows) -> None:
    """Score rows as :func:`score_ids` does without trees: in batches of similar length, 16,384 tokens each."""
    model.eval()
    left = sorted(rows, key=len)
    while left:
        count = max(1, 16_384 // len(left[-1]))
        row_scores(model, left[-count:])
        del left[-count:]
    model.train()


def seconds(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_mib(work: Callable[[], None]) -> float:
    """Return the peak memory of ``work`` in MiB above the memory held before; NaN where the system has no such
    count."""
    gc.collect()
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: freed memory goes back at once, so it is not counted
    work()
    gc.collect()
    libc.malloc_trim(0)
    reset.write_text("5")  # resets the high-water mark

    def held(field: str) -> float:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field)) / 1024

    before = held("VmRSS")
    work()
    return held("VmHWM") - before


def pocket_base(folder: Path) -> Path:
    base = folder / "base"
    if not base.exists():
        recipe = load_recipe(find_recipe("quickstart"))
        assert recipe.model.init is not None
        words = [*world.vocabulary(), *recipe.template.ask.split()]
        make_from_scratch(recipe.model.init, [], base, seed=0, max_tokens=256, words=words)
    return base


def pocket_model(options: argparse.Namespace, folder: Path) -> PreTrainedModel:
    base = pocket_base(folder)
    model = load_model(base, load_tokenizer(base), writes=False)
    model.set_attn_implementation("sdpa")
    return model


def pocket_rounds(options: argparse.Namespace, folder: Path) -> list[Round]:
    """The quickstart's own batches: 32 triples for training; 32 prompts with 8 candidates each for scoring."""
    recipe, tokenizer = load_recipe(find_recipe("quickstart")), load_tokenizer(pocket_base(folder))
    pairs = world.make_preferences(4_000, 0)
    rows = gap_rows(pairs, tokenizer, Template(recipe.template.ask))
    rng = random.Random(0)
    rounds = []
    for _ in range(options.rounds + 1):
        scored: Rows = []
        for row in rng.sample(rows, 32 * options.scale):
            begin = row.wl[: shared_prefix(row.wl, row.ll)]
            others = [other.wl[shared_prefix(other.wl, other.ll) :] for other in rng.sample(rows, CANDIDATES)]
            scored += [begin + y for y in [*others, row.ll[len(begin) :]]]
        rounds.append(Round(rng.sample(rows, recipe.gap.batch_size * options.scale), scored))
    return rounds


def qwen_model(options: argparse.Namespace, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("qwen2", num_hidden_layers=options.layers, **QWEN_2_5_0_5B)
    )
    return model


def lengths_rounds(tokens: int, groups: int, sizes: Callable[[argparse.Namespace], Sizes]) -> Callable[..., Any]:
    """Random tokens with lengths from ``sizes``. A batch has triples of similar length, ``tokens`` in all."""

    def rounds(options: argparse.Namespace, folder: Path) -> list[Round]:
        rng = random.Random(0)
        known = sorted(sizes(options), key=sum)
        made = []
        for _ in range(options.rounds + 1):
            at = rng.randrange(len(known))
            triples: list[GapRow] = []
            while sum(sum(map(len, t)) for t in triples) < tokens * options.scale:
                triples.append(triple(rng, *known[at % len(known)]))
                at += 1
            scored: Rows = []
            for _ in range(groups * options.scale):
                x, w, _ = rng.choice(known)
                begin = draw(rng, x) + (reference := draw(rng, w))
                answers = [draw(rng, rng.choice(rng.choice(known)[1:])) for _ in range(CANDIDATES)]
                scored += [begin + y for y in [*answers, reference]]
            made.append(Round(triples, scored))
        return made

    return rounds


def draw(rng: random.Random, count: int) -> list[int]:
    return [*(rng.randrange(2, VOCABULARY) for _ in range(count - 1)), END]


def triple(rng: random.Random, x: int, w: int, l: int) -> GapRow:
    of_x, of_w, of_l = draw(rng, x), draw(rng, w), draw(rng, l)
    return GapRow(wl=of_x + of_l + of_w, ww=of_x + of_w + of_w, ll=of_x + of_l + of_l, lw=of_x + of_w + of_l)


def hh_lengths(options: argparse.Namespace) -> Sizes:
    if options.pairs is not None:
        return measured(options.pairs)
    with Path(__file__).with_name("hh_lengths.csv").open(encoding="utf-8") as file:
        return [(int(row["x"]), int(row["w"]), int(row["l"])) for row in csv.DictReader(file)]


def measured(source: Path) -> Sizes:
    """Token counts of x, y_w and y_l in 1,000 random pairs of a source, with a BPE of 4,096 trained on the source."""
    pairs = load_preferences(str(source), skip_invalid=True).preferences
    with tempfile.TemporaryDirectory() as folder:
        init = InitSection(layers=1, hidden=16, heads=2, mlp=16, tokenizer="bpe", vocabulary=VOCABULARY)
        texts = (text for p in pairs for text in (*(m.content for m in p.prompt.messages), p.chosen, p.rejected))
        make_from_scratch(init, texts, Path(folder), seed=0, max_tokens=16)
        tokenizer = load_tokenizer(folder)

    def count(text: str) -> int:  # plus one token for the turn's mark or the end token
        return len(tokenizer.encode(text)) + 1

    drawn = random.Random(0).sample(pairs, min(1_000, len(pairs)))
    return [(sum(count(m.content) for m in p.prompt.messages), count(p.chosen), count(p.rejected)) for p in drawn]


SHAPES: dict[str, tuple[Callable[..., PreTrainedModel], Callable[..., list[Round]]]] = {
    "pocket": (pocket_model, pocket_rounds),
    "hh": (qwen_model, lengths_rounds(5_000, 2, hh_lengths)),
    "tldr": (qwen_model, lengths_rounds(6_000, 2, lambda _: [(350, 35, 35)])),
    "long": (qwen_model, lengths_rounds(7_000, 1, lambda _: [(1500, 200, 200)])),
}

if __name__ == "__main__":
    main()
