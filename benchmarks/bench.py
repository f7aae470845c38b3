"""Runs the benchmarks one after the other, and makes one table of them: ours, the peer, and the ratio.

Each benchmark measures both sides in turn. A ratio above 1 is in our favour. Run the benchmarks alone: another program
on the same cores disturbs the absolute figures, and most ratios.

`--page` and `--json` write the table as Markdown and all figures as JSON. `--growth` takes figures of growth.py into
both. `--only NAME...` runs these benchmarks, and takes the figures of the others from an earlier run, under
build/bench. `--only` without a name runs no benchmark.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from common import ROOT, parser_of, save

from pitlm.plan.hardware import look

OUT = ROOT / "build" / "bench"
FLOOR = "python -c pass"


class Row(NamedTuple):
    """A line of the table: two figures with their unit, and the ratio in our favour."""

    what: str
    peer: str
    ours: float
    other: float
    unit: str
    ratio: float


def gap(f: dict[str, Any]) -> Iterator[Row]:
    for shape, one in f.items():
        step, scoring = f"R_PIT, a training step, {shape}", f"R_PIT, scoring, {shape}"
        yield Row(step, "separate rows", one["train_ms_tree"], one["train_ms_rows"], "ms", one["train_ratio"])
        yield Row(step, "TRL's RewardTrainer", one["train_ms_tree"], one["train_ms_trl"], "ms", one["trl_ratio"])
        yield Row(scoring, "separate rows", one["score_ms_tree"], one["score_ms_rows"], "ms", one["score_ratio"])


def rl(f: dict[str, Any]) -> Iterator[Row]:
    for shape, one in f.items():
        yield Row(f"RL, a step, {shape}", "TRL's RLOOTrainer", one["ours_ms"], one["stock_ms"], "ms", one["step_ratio"])


def rl_stage(f: dict[str, Any]) -> Iterator[Row]:
    for what, words in (("step", "a step"), ("stage", f"a whole stage of {f['steps']} steps")):
        seconds = f[f"ours_{what}_seconds"], f[f"stock_{what}_seconds"]
        yield Row(f"RL of SmolLM2, {words}", "TRL's RLOOTrainer", *seconds, "s", f[f"{what}_ratio"])


def improve(f: dict[str, Any]) -> Iterator[Row]:
    for model, one in f.items():
        rates = one["items_per_second"], one["items_per_second_plain"]
        yield Row(f"pit improve, {model}", "`generate`, rows scored alone", *rates, "rows/s", one["throughput_ratio"])


def write(f: dict[str, Any]) -> Iterator[Row]:
    ours = f["writers"]["pitlm"]["tokens_per_second"]
    for name, one in f["writers"].items():
        if name != "pitlm":
            yield Row("SmolLM2 writes", one["peer"], ours, one["tokens_per_second"], "tokens/s", one["ratio"])


def evaluate(f: dict[str, Any]) -> Iterator[Row]:
    told = f"pit evaluate, {f['systems']} files of {f['items']} rows"
    for name, peer in (("alpaca-eval", f"alpaca-eval {f['alpaca_eval']}"), ("numpy", "numpy, win rates alone")):
        yield Row(told, peer, f["seconds"]["pit evaluate"], f["seconds"][name], "s", f["ratio"][name])


def proxies(f: dict[str, Any]) -> Iterator[Row]:
    ours = f["proxies"]["pitlm"]
    for name, one in f["proxies"].items():
        if name == "pitlm":
            continue
        peer = f"{name} {one['version']}"
        for key, what, unit in (
            ("latency_added_p50_ms", "pit serve, added latency, median", "ms"),
            ("memory_mib", "pit serve, memory", "MiB"),
        ):
            yield Row(what, peer, ours[key], one[key], unit, one[key] / ours[key])
        rates = ours["requests_per_s"], one["requests_per_s"]
        yield Row("pit serve, requests of 64 clients", peer, *rates, "requests/s", rates[0] / rates[1])


class Benchmark(NamedTuple):
    """One benchmark: how its figures become lines of the table, if it has peers, and its options, whole and quick."""

    rows: Callable[[dict[str, Any]], Iterator[Row]] | None
    whole: str
    quick: str


BENCHMARKS = {
    "gap": Benchmark(gap, "--rounds 5", "--rounds 1 --shapes pocket tldr"),
    "rl": Benchmark(rl, "--rounds 3", "--rounds 1 --shapes p96"),
    "rl_stage": Benchmark(rl_stage, "--steps 3", "--steps 1"),
    "improve": Benchmark(improve, "--rounds 1", "--rounds 1 --models smol --items 16"),
    "write": Benchmark(write, "--rows 128", "--rows 16 --rounds 1 --batch 8"),
    "evaluate": Benchmark(evaluate, "--rounds 2", "--rounds 1"),
    "proxies": Benchmark(proxies, "", "--rounds 1 --requests 512 --pairs 100"),
    "startup": Benchmark(None, "--rounds 7", "--rounds 2"),
}
HEAD = """# Bench

`make bench` makes the tables, and `make growth` draws the plots. A ratio above 1 is in our favour. Where a benchmark
has several rounds, the ratio is the median of the rounds' ratios, so it can differ from the quotient of the two
figures. On another machine the figures change more than the ratios. The docstring of each file in `benchmarks` says
what the benchmark measures, and in which order the two sides run.

R_PIT is the gap model, and RL trains the improver ([words](usage.md#words)). "Separate rows" reads each prompt once for
each answer. `pocket` is the quickstart's model on its own pairs. `hh`, `tldr` and `long` are layers of Qwen2.5-0.5B's
shape, with the lengths of HH-RLHF's pairs, with prompts of 350 and answers of 35 tokens, and with 1,500 and 200 tokens.
`p96` and `p512` have prompts of 96 and 512 tokens. `llama30m` is a random model of 30 million parameters, and `smol` is
SmolLM2-135M.

{machine}

| what | ours | peer | peer's figure | unit | ratio |
| --- | ---: | --- | ---: | --- | ---: |
"""
START = """
## Start of each verb

No peer, but a floor: a Python program that does nothing takes {floor} ms.

| command | ms |
| --- | ---: |
"""
GROWTH = """
## How cost grows

If the cost doubles when the size doubles, the exponent is 1. The exponent is the slope through the last three sizes, on
logarithmic axes. The seconds of `pit improve`, `pit evaluate` and `pit data inspect` include their start;
their exponents and rates leave it out. The exponent is then fitted to cost = start + a size^exponent over all sizes,
and the rates are those between the last three sizes.

![Cost against size]({picture})

| part | sizes | first and last cost | exponent | rates, small and large | memory, first and last |
| --- | --- | --- | ---: | --- | --- |
"""


def shown(value: float) -> str:
    """A figure with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rates(growth: dict[str, Any]) -> tuple[float, float]:
    """What a part does in a second, with a small input and with the largest, without the time of its start."""
    if "rates" in growth:
        return growth["rates"][0], growth["rates"][-1]
    sizes, cost = growth["sizes"], growth["cost"]
    if "starts" not in growth:
        return sizes[0] / cost[0], sizes[-1] / cost[-1]
    # The first step from size to size costs less than the noise of the start.
    steps = [*zip(pairwise(sizes), pairwise(cost), strict=True)][-2:]
    first, last = ((more - few) / (slow - fast) for (few, more), (fast, slow) in (steps[0], steps[-1]))
    return first, last


def page(figures: dict[str, Any]) -> str:
    """The figures of a run as Markdown."""
    lines = [
        f"| {row.what} | {shown(row.ours)} | {row.peer} | {shown(row.other)} | {row.unit} | {row.ratio:.2f} |"
        for name, benchmark in BENCHMARKS.items()
        if benchmark.rows and name in figures
        for row in benchmark.rows(figures[name])
    ]
    text = HEAD.format(machine=figures["machine"]) + "\n".join(lines) + "\n"
    if "startup" in figures:
        starts = {name: 1000 * one["median_seconds"] for name, one in figures["startup"]["commands"].items()}
        text += START.format(floor=shown(starts.pop(FLOOR)))
        text += "".join(f"| `{name}` | {shown(own)} |\n" for name, own in starts.items())
    if "growth" not in figures:
        return text
    text += GROWTH.format(picture="bench.growth.svg")
    for name, one in figures["growth"].items():
        sizes, cost, memory = ([one[key][0], one[key][-1]] if key in one else None for key in ("sizes", "cost", "mib"))
        held = "{:,.0f} and {:,.0f} MiB".format(*memory) if memory else "-"
        costs = f"{shown(cost[0])} and {shown(cost[1])} {one['unit']}"
        rate = "{} and {} {}/s".format(*map(shown, rates(one)), "requests" if "rates" in one else one["of"])
        size = f"{sizes[0]:,} to {sizes[1]:,} {one['of']}"
        text += f"| {name} | {size} | {costs} | {one['exponent']:.2f} | {rate} | {held} |\n"
    return text


def machine() -> str:
    """One sentence about the machine and the versions."""
    found = look({}, ROOT)
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    cards = ", ".join(card["name"] for card in found["accelerators"]) or "no GPU"
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    cores = f"{found['cores']} cores ({processor})"
    return f"Machine: {cores}, {found['memory'] / 2**30:.0f} GiB, {cards}. Versions: {versions}."


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="Few rounds, few shapes: at most eight minutes.")
    only = "Run only these; without a name: none."
    parser.add_argument("--only", nargs="*", default=list(BENCHMARKS), metavar="NAME", help=only)
    parser.add_argument("--page", type=Path, metavar="FILE", help="Write the table here, as Markdown.")
    parser.add_argument("--growth", type=Path, metavar="FILE", help="Figures of growth.py, for the page.")
    options = parser.parse_args()
    kept = OUT / "quick" if options.quick else OUT
    if unknown := set(options.only) - BENCHMARKS.keys():
        parser.error(f"--only: found {min(unknown)}, expected some of {', '.join(BENCHMARKS)}")
    for name in options.only:
        begin = time.monotonic()
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--json", str(kept / f"{name}.json")]
        print(f"{name} ...", flush=True)
        told = BENCHMARKS[name].quick if options.quick else BENCHMARKS[name].whole
        subprocess.run([*command, *told.split()], check=True)
        print(f"{name} took {time.monotonic() - begin:.0f} s\n", flush=True)
    files = {name: kept / f"{name}.json" for name in BENCHMARKS}
    figures = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    figures = {"machine": machine(), **figures}
    if options.growth is not None:
        figures["growth"] = json.loads(options.growth.read_text(encoding="utf-8"))
    text = page(figures)
    print(text)
    if options.page is not None:
        options.page.write_text(text, encoding="utf-8")
    save(figures, options.json)


if __name__ == "__main__":
    main()
