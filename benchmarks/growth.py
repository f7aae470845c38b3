"""Measures how the cost of each part grows with its input, and plots it.

* R_PIT, scoring: 1 to 64 candidates of 64 tokens, with x of 512 tokens; then 8 candidates, with x of 64 to 4,096. One
  layer of Qwen2.5-0.5B's shape, in this process, the fastest of three times.
* `pit improve`: 1,000 to 1,000,000 rows, one round each, with a scripted improver and gap model, so that reading, the
  loop and the journal are measured.
* `pit evaluate`: 1,000 to 1,000,000 verdicts on one system, one verdict per item.
* `pit data inspect`: 10,000 to 10,000,000 pairs.
* `pit serve` without improvement: 1 to 512 clients at once, in front of a scripted API. The cost is the processor time
  of the proxy for each request, beside the memory that it holds.

The other three verbs run in processes of their own, from start to end, with their peak memory. If the cost doubles when
the size doubles, the exponent is 1. The exponent is the slope through the last three sizes, on logarithmic axes. For
these three verbs it is that of cost = start + a size^exponent, fitted to all sizes by their relative errors, because
the start is most of what small inputs cost. `--largest 0.01` makes their largest inputs a hundred times smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import parser_of, save
from scipy.optimize import curve_fit

JOB_ROW = {"prompt": "How long does a boiled egg take, and does its size matter?", "response": "About eight minutes."}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED), metavar="PART")
    parser.add_argument("--largest", type=float, default=1.0, help="Factor on the largest sizes of the verbs.")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Draw the figures into this file (SVG).")
    parser.add_argument("--job", type=Path, help="Internal: improve this file with scripted models.")
    options = parser.parse_args()
    if options.job:
        return improve_scripted(options.job)
    figures: dict[str, Any] = {}
    for name in options.only:
        for part, rows in MEASURED[name](options.largest):
            figures[part] = {**rows, "exponent": exponent(rows["sizes"], rows["cost"], rows.get("starts", False))}
            print(f"{part:34} cost ~ size^{figures[part]['exponent']:.2f}", flush=True)
            for size, *told in zip(*(rows[key] for key in ("sizes", "cost", "mib") if key in rows), strict=True):
                print(f"{size:12,}  " + "  ".join(f"{value:12.4g}" for value in told), flush=True)
    if options.plot:
        draw(figures, options.plot)
    save(figures, options.json)


def exponent(sizes: Sequence[float], cost: Sequence[float], starts: bool = False) -> float:
    """The exponent of the cost: of the last three sizes or, of a program that starts anew, above the fitted start."""
    if len(sizes) < 3:
        return float("nan")
    shares, costs = np.array(sizes) / sizes[-1], np.array(cost)
    if not starts:
        return float(np.polyfit(np.log(shares[-3:]), np.log(costs[-3:]), 1)[0])

    def grown(shares: np.ndarray, start: float, grows: float, power: float) -> np.ndarray:
        return start + grows * shares**power

    guess = [costs[0], costs[-1] - costs[0], 1.0]
    (_, _, power), _ = curve_fit(grown, shares, costs, guess, sigma=costs, bounds=(0, np.inf))
    return float(power)


def draw(figures: dict[str, Any], file: Path) -> None:
    """A panel for each part: cost against size, both logarithmic, beside a line of exponent 1."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pitlm"  # the same figures give the same file
    from matplotlib import pyplot

    columns = 3
    lines = -(-len(figures) // columns)
    picture, panels = pyplot.subplots(lines, columns, figsize=(10, 2.9 * lines), squeeze=False)
    for axes in panels.flat[len(figures) :]:
        axes.set_axis_off()
    for axes, (name, rows) in zip(panels.flat, figures.items(), strict=False):
        sizes, cost = np.array(rows["sizes"]), np.array(rows["cost"])
        axes.loglog(sizes, cost, marker="o", label=f"exponent {rows['exponent']:.2f}")
        axes.loglog(sizes, cost[-1] * sizes / sizes[-1], color="grey", linestyle=":", label="in proportion")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(rows["of"], fontsize=8)
        axes.set_ylabel(rows["unit"], fontsize=8)
        axes.legend(fontsize=7)
    picture.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(file, metadata={"Date": None})


def run(*command: object) -> tuple[float, float]:
    """Wall seconds and peak memory in MiB of a Python program."""
    begin, peak = time.perf_counter(), 0.0
    with subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")  # the peak of `wait4` would include that of this process
        while process.poll() is None:
            with suppress(OSError, StopIteration):
                line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
                peak = int(line.split()[1]) / 1024
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return time.perf_counter() - begin, peak


def scoring(largest: float) -> Iterator[tuple[str, dict[str, Any]]]:
    from gap import VOCABULARY, enable_trees, qwen_model, score_ids

    model, rng = qwen_model(argparse.Namespace(layers=1), Path()).eval(), random.Random(0)
    enable_trees(model)

    def words(count: int) -> list[int]:
        return [rng.randrange(2, VOCABULARY) for _ in range(count)]

    def cost(candidates: int, x: int) -> float:
        asked = words(x) + words(64)
        rows = [asked + words(64) for _ in range(candidates)]
        taken = []
        for _ in range(4):  # the first warms up
            begin = time.perf_counter()
            score_ids(model, rows)
            taken.append(time.perf_counter() - begin)
        return min(taken[1:])

    seconds = {"unit": "seconds"}
    counts = [1, 2, 4, 8, 16, 32, 64]
    yield "R_PIT: candidates", {"sizes": counts, "cost": [cost(n, 512) for n in counts], "of": "candidates", **seconds}
    lengths = [64, 128, 256, 512, 1024, 2048, 4096]
    yield "R_PIT: length of x", {"sizes": lengths, "cost": [cost(8, n) for n in lengths], "of": "tokens", **seconds}


def verb(
    part: str, of: str, sizes: Sequence[int], write: Callable[[Path, int], None], *command: object
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run a command on files of growing size. `FILE` in the command stands for the file."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            file = Path(folder) / "in.jsonl"
            write(file, size)
            found.append(run(*(file if word == "FILE" else word for word in command)))
            for left in Path(folder).iterdir():
                left.unlink()
    cost, mib = zip(*found, strict=True)
    yield part, {"sizes": list(sizes), "cost": cost, "mib": mib, "of": of, "unit": "seconds", "starts": True}


def powers(low: int, high: int, largest: float) -> list[int]:
    """Powers of ten, as far as the largest size allows."""
    return [10**n for n in range(low, high + 1) if 10**n <= max(largest * 10**high, 10**low)]


def improving(largest: float) -> Iterator[tuple[str, dict[str, Any]]]:
    def write(file: Path, rows: int) -> None:
        with file.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({**JOB_ROW, "id": number}) + "\n" for number in range(rows))

    yield from verb("pit improve, scripted", "rows", powers(3, 6, largest), write, __file__, "--job", "FILE")


def improve_scripted(file: Path) -> None:
    """`pit improve` of a file, with an engine and a gap model that cost nothing."""
    from pitlm.batch.batch_job import BatchJob
    from pitlm.batch.improve_file import Setup, improve_file
    from pitlm.core.loop_section import LoopSection
    from pitlm.core.nouns import Answer
    from pitlm.engines.engine import Engine, Finished, WriteRequest

    class Scripted(Engine):
        """Answers each request at once, 64 at a time."""

        def __init__(self) -> None:
            self.asked: list[WriteRequest] = []

        pending = property(lambda self: len(self.asked))
        hungry = property(lambda self: len(self.asked) < 64)

        def submit(self, request: WriteRequest) -> None:
            self.asked.append(request)

        def step(self) -> list[Finished]:
            ended, self.asked = self.asked, []
            return [Finished(one.key, Answer(f"{one.reference} Not longer.", 12, 40)) for one in ended]

    class Free(Setup):
        """A job without models."""

        def __init__(self) -> None:
            self.named, self.calibration, self.settings = {}, None, LoopSection(rounds=1)
            gap = SimpleNamespace(gaps_apart=lambda groups: [[1.0] * len(group) for group in groups])
            self.job = partial(BatchJob, engine=Scripted(), gap=gap, settings=self.settings, margin=0.0, seed=0)

    improve_file(file, file.with_name("out.jsonl"), Free())


def evaluating(largest: float) -> Iterator[tuple[str, dict[str, Any]]]:
    def write(file: Path, rows: int) -> None:
        rng = np.random.default_rng(0)
        verdicts = np.array(["win", "loss", "tie"])[rng.choice(3, size=rows, p=[0.5, 0.3, 0.2])]
        systems = {"first": "ours", "second": "original"}
        with file.open("w", encoding="utf-8") as out:
            for number, verdict in enumerate(verdicts):
                out.write(json.dumps({"item": f"{number:07}", **systems, "verdict": str(verdict)}) + "\n")

    yield from verb("pit evaluate", "verdicts", powers(3, 6, largest), write, *PIT, "evaluate", "FILE")


def inspecting(largest: float) -> Iterator[tuple[str, dict[str, Any]]]:
    def write(file: Path, rows: int) -> None:
        with file.open("w", encoding="utf-8") as out:
            for number in range(rows):
                pair = {"prompt": f"Question {number}?", "chosen": f"It is {number}.", "rejected": "I do not know."}
                out.write(json.dumps(pair) + "\n")

    yield from verb("pit data inspect", "pairs", powers(4, 7, largest), write, *PIT, "data", "inspect", "FILE")


def serving(largest: float) -> Iterator[tuple[str, dict[str, Any]]]:
    import serve

    with serve.process(serve.__file__, "--upstream") as direct:
        command = (*PIT, "serve", "--port", "0", "--concurrency", "1024", "--upstream", direct)
        with serve.process(*command) as proxied:

            async def measure(clients: int) -> tuple[float, float, float]:
                before = await serve.said(proxied, "process_cpu_seconds_total")
                requests = max(2048, 16 * clients)
                rate = await serve.rate(proxied, clients, requests)
                busy = await serve.said(proxied, "process_cpu_seconds_total") - before
                return busy / requests, await serve.resident(proxied), rate

            sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
            found = [asyncio.run(measure(clients)) for clients in sizes]
    cost, mib, rates = zip(*found, strict=True)
    told = {"sizes": sizes, "cost": cost, "mib": mib, "rates": rates, "of": "clients"}
    yield "pit serve: one request", {**told, "unit": "processor seconds a request"}


PIT = ("-m", "pitlm.cli.main")
MEASURED: dict[str, Callable[[float], Iterator[tuple[str, dict[str, Any]]]]] = {
    "scoring": scoring,
    "improve": improving,
    "evaluate": evaluating,
    "inspect": inspecting,
    "serve": serving,
}

if __name__ == "__main__":
    main()
