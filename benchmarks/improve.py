"""Measures how much time `pit improve` saves on a file of answers, against a plain implementation.

The plain implementation takes the file in batches of one size. For each round of a batch it calls `generate` once,
and it scores each row (x, y_ref, y) and (x, y_ref, y_ref) separately. `pit improve` fills each free place in the
batch with the next answer to write, and scores rows with a common beginning as trees. Both run the same loop on the
same models in one process, in turn, greedily, for three rounds. The plain batch is as large as the average batch of
`pit improve` while rows wait. A ratio is plain / ours in seconds, so above 1 ours is faster. The result is the median
of the rounds' ratios.

Models: `pocket` is a finished quickstart on answers of its own policy (``--run``; trained first if missing).
`llama30m` is a Llama of 30 million parameters with random weights. Random weights do not know when to end, so each
token has a fixed chance of being the end token. A hash of the last token and its position decides, so every engine
ends alike. Lengths are then geometric, with the mean of HH-RLHF's chosen answers (85 tokens) and cut at 256. Their
standard deviation is 79, and that of a geometric distribution 85. Prompts and answers are random words with lengths
of HH-RLHF pairs (hh_lengths.csv). `smol` is SmolLM2-135M-Instruct in float32, as improver and, with a random score
head, as gap model. It improves its own answers to questions of the house style, with at most 40 tokens.
"""

from __future__ import annotations

import argparse
import copy
import csv
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import ROOT, house_style_prompts, paired, parser_of, save, smollm2
from transformers import AutoConfig, LlamaForCausalLM, LlamaForSequenceClassification

from pitlm.batch.batch_job import BatchJob
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt, Trace
from pitlm.core.recipe import InitSection, TemplateSection
from pitlm.data.dataset import load_preferences
from pitlm.data.items import Failure, Item
from pitlm.data.template import encode_completion, encode_prompts
from pitlm.engines.decoder import write_batch
from pitlm.engines.generators import Improver, Policy
from pitlm.engines.local_engine import LocalEngine
from pitlm.loop.loop import Loop
from pitlm.models.loading import Card, load_model, load_tokenizer, quiet
from pitlm.models.scorers import GapModel
from pitlm.models.scratch import make_from_scratch
from pitlm.models.trees import enable_trees
from pitlm.run.folder import stored_recipe

SETTINGS = LoopSection(rounds=3, temperature=0.0)
LONGEST, SHORT = 256, 40
LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = 8_186


class Bench(NamedTuple):
    """The models, and the rows of the file to improve."""

    improver: Improver
    gap: GapModel
    items: list[Item]
    tokens_per_batch: int = 16_384


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["pocket", "llama30m", "smol"], metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=3, help="Measured rounds. Default: 3.")
    parser.add_argument("--items", type=int, help="Rows of the file. Default: 600 (pocket), 96 (llama30m), 48 (smol).")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--tokens-per-batch", type=int, help="Default: 16,384, for smol 4,096, so that rows wait.")
    options = parser.parse_args()
    quiet()
    figures = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measure(MODELS[name](options, Path(folder)), options)
        print(describe(name, figures[name]), flush=True)
    save(figures, options.json)


def describe(name: str, f: dict[str, Any]) -> str:
    same = "all" if f["same_answers"] else f"{f['same_share']:.1%}"
    return (
        f"{name:9} throughput x{f['throughput_ratio']:.2f} (rows/s {f['items_per_second_plain']:.2f} -> "
        f"{f['items_per_second']:.2f}, tokens/s {f['tokens_per_second_plain']:.0f} -> {f['tokens_per_second']:.0f})  "
        f"same answers: {same}\n"
        f"{'':10}writing x{f['writing_ratio']:.2f} (s {f['writing_seconds_plain']:.1f} -> {f['writing_seconds']:.1f}), "
        f"scoring x{f['scoring_ratio']:.2f} (s {f['scoring_seconds_plain']:.1f} -> {f['scoring_seconds']:.1f})  "
        f"batch {f['batch']}, {f['mean_tokens']:.0f} tokens an answer, {f['loop_rounds']:.2f} rounds a row"
    )


class Clock:
    """Counts seconds by kind of work."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("writing", "scoring", "all"), 0.0)

    def timed(self, kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            done = work(*args, **kwargs)
            self.spent[kind] += time.perf_counter() - begin
            return done

        return wrapped


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    tokens_in_flight = options.tokens_per_batch or bench.tokens_per_batch
    ours(bench, bench.items[:4], tokens_in_flight, Clock(), [])  # warms up
    plain(bench, bench.items[:4], 4, Clock())
    walls: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    active: list[int] = []
    for _ in range(options.rounds):
        clock = Clock()
        fast = clock.timed("all", ours)(bench, bench.items, tokens_in_flight, clock, active)
        walls["ours"].append(clock.spent)
        batch = round(statistics.mean(active))
        clock = Clock()
        slow = clock.timed("all", plain)(bench, bench.items, batch, clock)
        walls["plain"].append(clock.spent)
    tokens = sum(trace.generated_tokens for trace in fast)
    proposals = sum(len(trace.rounds) for trace in fast)
    same = [
        [r.proposal for r in a.rounds] == [r.proposal for r in b.rounds] and a.final == b.final
        for a, b in zip(fast, slow, strict=True)
    ]
    figures: dict[str, Any] = {"same_answers": all(same), "same_share": sum(same) / len(same), "batch": batch}
    for kind, name in (("all", "throughput"), ("writing", "writing"), ("scoring", "scoring")):
        figures[f"{name}_ratio"] = paired(*([round_[kind] for round_ in walls[side]] for side in ("plain", "ours")))
        figures[f"{name}_seconds"] = statistics.median(w[kind] for w in walls["ours"])
        figures[f"{name}_seconds_plain"] = statistics.median(w[kind] for w in walls["plain"])
    for suffix in ("", "_plain"):
        figures[f"items_per_second{suffix}"] = len(fast) / figures[f"throughput_seconds{suffix}"]
        figures[f"tokens_per_second{suffix}"] = tokens / figures[f"throughput_seconds{suffix}"]
    figures.update(
        items=len(fast),
        rounds=options.rounds,
        mean_tokens=tokens / proposals,
        loop_rounds=proposals / len(fast),
        threads=torch.get_num_threads(),
    )
    return figures


def ours(bench: Bench, items: list[Item], tokens: int, clock: Clock, active: list[int]) -> list[Trace]:
    enable_trees(bench.gap.model)
    engine = LocalEngine(bench.improver, tokens)
    step = clock.timed("writing", engine.step)

    def watched() -> Any:
        if engine.decoder.waiting_tokens and engine.decoder.active:
            active.append(engine.decoder.active)
        return step()

    engine.step = watched  # type: ignore[method-assign]

    class Scorer:
        gaps_apart = staticmethod(clock.timed("scoring", bench.gap.gaps_apart))

    job = BatchJob(iter(items), engine=engine, gap=Scorer(), settings=SETTINGS, margin=0.0, seed=0)
    found = {}
    for finished in job:
        for one in finished:
            assert not isinstance(one, Failure), one
            found[one[0].number] = one[1]
    return [found[item.number] for item in items]


def plain(bench: Bench, items: list[Item], batch: int, clock: Clock) -> list[Trace]:
    """Run the loop with one `generate` call per round and batch, and the gap model on one row at a time."""
    improver, gap = bench.improver, bench.gap
    for model in (improver.model, gap.model):
        model.set_attn_implementation("sdpa")
    loops = [Loop(item.prompt, item.response or "", SETTINGS, margin=0.0) for item in items]

    def propose(prompts: list[Prompt], references: list[str]) -> list[Answer]:
        asked = zip(prompts, references, strict=True)
        ids = encode_prompts(improver.tokenizer, [improver.template.improver_messages(*one) for one in asked])
        made = write_batch(
            improver.model,
            ids,
            pad_token_id=improver.tokenizer.pad_token_id,
            eos_token_id=improver.tokenizer.eos_token_id,
            max_new_tokens=improver.card.max_new_tokens,
            do_sample=False,
        )
        texts = improver.tokenizer.batch_decode(made, skip_special_tokens=True)
        return [Answer(text.strip(), len(one)) for text, one in zip(texts, made, strict=True)]

    @torch.inference_mode()
    def score(prompt: Prompt, reference: str, response: str) -> float:
        [ids] = encode_prompts(gap.tokenizer, [gap.template.improver_messages(prompt, reference)])
        row = torch.tensor([ids + encode_completion(gap.tokenizer, response)])
        return float(gap.model(input_ids=row, use_cache=False).logits[0, 0])

    propose, score = clock.timed("writing", propose), clock.timed("scoring", score)
    for start in range(0, len(loops), batch):
        while asking := [loop for loop in loops[start : start + batch] if loop.begin_round()]:
            made = propose([loop.prompt for loop in asking], [loop.best for loop in asking])
            for loop, answer in zip(asking, made, strict=True):
                equal = score(loop.prompt, loop.best, loop.best)
                loop.take([answer], [score(loop.prompt, loop.best, answer.text) - equal])
    return [loop.trace() for loop in loops]


def pocket(options: argparse.Namespace, folder: Path) -> Bench:
    if not (options.run / "report" / "stage.json").exists():
        print(f"training the quickstart into {options.run} first (five minutes)", flush=True)
        command = [sys.executable, "-m", "pitlm.cli.main", "run", "quickstart", "--out", options.run]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    recipe = stored_recipe(options.run)
    pairs = load_preferences(str(options.run / "data" / "rl.jsonl")).preferences[: options.items or 600]
    prompts = [pair.prompt for pair in pairs]
    policy = Policy.from_pretrained(options.run / recipe.policy_stage / "model")
    answers = policy.answer(prompts, temperature=1.0, seed=0)
    items = [Item(n, x, y.text, {}, "") for n, (x, y) in enumerate(zip(prompts, answers, strict=True))]
    improver = Improver.from_pretrained(options.run / recipe.improver_stage / "model")
    return Bench(improver, GapModel.from_pretrained(options.run / "gap" / "model"), items)


def ending(mean: float, specials: int, end: int) -> type[LlamaForCausalLM]:
    """Return a Llama class that ends by chance, after ``mean`` tokens on average, and writes words only."""

    class Ending(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
            output = super().forward(input_ids=input_ids, position_ids=position_ids, **kwargs)
            mixed = input_ids[:, -1] * 2_654_435_761 + position_ids[:, -1] * 2_246_822_519
            mixed = ((mixed ^ (mixed >> 15)) * 3_266_489_917) & 0xFFFFFFFF
            ends = (mixed ^ (mixed >> 13)) % 10_000 < 10_000 / mean
            if output.logits.shape[1]:  # nothing is predicted after a prompt that is only read
                output.logits[:, -1, :specials] = -torch.inf
                output.logits[ends, -1, end] = torch.inf
            return output

    return Ending


def llama(options: argparse.Namespace, folder: Path, shape: dict[str, int] = LLAMA, items: int = 96) -> Bench:
    with Path(__file__).with_name("hh_lengths.csv").open(encoding="utf-8") as file:
        sizes = [(int(row["x"]), int(row["w"]), int(row["l"])) for row in csv.DictReader(file)]
    words = [f"w{number}" for number in range(WORDS)]
    init = InitSection(layers=1, hidden=16, heads=2, mlp=16, tokenizer="words")
    make_from_scratch(init, [], folder, seed=0, max_tokens=4096, words=[*words, "better"])
    tokenizer = load_tokenizer(folder)
    specials = min(tokenizer.convert_tokens_to_ids(["better", "w0"]))
    config = AutoConfig.for_model(
        "llama",
        **shape,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config.num_labels = 1
    torch.manual_seed(0)
    mean = statistics.mean(w for _, w, _ in sizes)
    # Each model has its own configuration, as two checkpoints do, because it says which attention the model computes.
    writer = ending(mean, specials, tokenizer.eos_token_id)(copy.deepcopy(config)).eval()
    scorer = LlamaForSequenceClassification(config).eval()
    torch.nn.init.normal_(scorer.score.weight)
    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(rng.choice(words) for _ in range(count))

    drawn = rng.choices([size for size in sizes if sum(size) < 1500], k=options.items or items)
    rows = [Item(n, Prompt.of(text(x)), text(l), {}, "") for n, (x, _, l) in enumerate(drawn)]
    return Bench(
        Improver(writer, tokenizer, Card("improver", "better", LONGEST)),
        GapModel(scorer, tokenizer, Card("gap", "better", LONGEST)),
        rows,
    )


def smol(options: argparse.Namespace, folder: Path) -> Bench:
    base = smollm2()
    tokenizer = load_tokenizer(base)
    writer, scorer = (load_model(base, tokenizer, writes=writes).eval() for writes in (True, False))
    torch.manual_seed(0)
    torch.nn.init.normal_(scorer.score.weight)
    prompts = house_style_prompts(options.items or 48)
    answers = Policy(writer, tokenizer, Card("policy", "", SHORT)).answer(prompts, temperature=1.0, seed=0)
    items = [Item(n, x, y.text, {}, "") for n, (x, y) in enumerate(zip(prompts, answers, strict=True))]
    # Each card has the turn that the recipes ask with.
    improver = Improver(writer, tokenizer, Card("improver", TemplateSection().ask, SHORT))
    gap = GapModel(scorer, tokenizer, Card("gap", TemplateSection().ask, SHORT))
    return Bench(improver, gap, items, tokens_per_batch=4_096)


MODELS: dict[str, Callable[[argparse.Namespace, Path], Bench]] = {
    "pocket": pocket,
    "llama30m": llama,
    "smol": smol,
    "tiny": lambda options, folder: llama(options, folder, TINY),
}

if __name__ == "__main__":
    main()
