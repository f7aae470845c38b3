"""Measures how long a leaderboard of 57 systems takes, each with 805 annotations: the questions of AlpacaEval 2.

In each round, in turn, each in a process of its own, from start to end (a first round is not counted):

* `pit evaluate`: win rates with intervals, rates at equal lengths, exact tests, every difference of two systems, and
  rankings with bootstrap intervals, written as JSON;
* alpaca-eval's own functions: win rates and rates at equal lengths. The table of difficulties that they load from a
  hub is a stand-in of the same shape here;
* plain numpy: the win rates alone, and their standard errors.

A ratio is the other's seconds / those of `pit evaluate`: above 1, ours is faster. The others compute less, so their
ratios can be below 1. The three have to agree on every win rate. The annotations are drawn at random; texts have 300
characters on average.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, paired, parser_of, save

PLAIN = """
import json, sys
import numpy as np
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        told = [row["preference"] for row in json.load(file)]
    preferences = np.array([value or 1.5 for value in told]) - 1
    print(preferences.mean(), preferences.std(ddof=1) / len(preferences) ** 0.5)
"""
WORDS = (
    "a",
    "answer",
    "better",
    "for",
    "is",
    "it",
    "model",
    "no",
    "of",
    "one",
    "question",
    "that",
    "the",
    "this",
    "you",
)


def make_files(folder: Path, systems: int, items: int) -> list[Path]:
    """Files of annotations against one baseline, as AlpacaEval writes them."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=max(1, round(rng.gauss(words, words / 3)))))

    asked = [f"{number}: {text(20)}" for number in range(items)]
    baseline = [text(70) for _ in asked]
    files = []
    for system in range(systems):
        skill = rng.gauss(0, 0.3)
        rows = [
            {
                **{"instruction": x, "output_1": y, "generator_1": "baseline", "output_2": text(rng.choice((50, 90)))},
                **{"generator_2": f"system-{system}", "annotator": "judge"},
                "preference": 1 + min(1.0, max(0.0, rng.gauss(0.5 + skill, 0.4))),
            }
            for x, y in zip(asked, baseline, strict=True)
        ]
        files.append(folder / f"system-{system}.json")
        files[-1].write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return files


def make_gamed(folder: Path, items: int) -> Path:
    """A table of the shape of AlpacaEval's `df_gamed.csv`: two models that were made to game the judge."""
    rng = random.Random(1)
    difficulty = [rng.gauss(0, 1) for _ in range(items)]
    rows = ["index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model in ("concise", "verbose"):
        rows += [f"{n},{model},{rng.random()},{rng.gauss(0, 1)},{d},False" for n, d in enumerate(difficulty)]
    path = folder / "gamed.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def measure(systems: int, items: int, rounds: int) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    from real_engines import engine, pit

    alpaca_eval = engine("alpaca-eval")
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        files, gamed, out = make_files(folder, systems, items), make_gamed(folder, items), folder / "out" / "f.json"

        def ours() -> list[float]:
            pit("evaluate", *files, "--json", out, "--force")
            found = {one["system"]: one["alpaca"]["win_rate"] for one in json.loads(out.read_text())["systems"]}
            return [found[path.stem] for path in files]

        def theirs() -> list[float]:
            told = {"files": list(map(str, files)), "gamed": str(gamed)}
            # Its environment is installed without compiled modules; the uncounted round writes them.
            return [raw for raw, _ in alpaca_eval.ask("rate_alpaca_eval.py", told, PYTHONDONTWRITEBYTECODE="")]

        def plain() -> list[float]:
            done = subprocess.run([sys.executable, "-c", PLAIN, *files], check=True, capture_output=True, text=True)
            return [100 * float(line.split()[0]) for line in done.stdout.splitlines()]

        sides: dict[str, Callable[[], list[float]]] = {"pit evaluate": ours, "alpaca-eval": theirs, "numpy": plain}
        walls: dict[str, list[float]] = {name: [] for name in sides}
        rates: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for name, rate in sides.items():
                begin = time.perf_counter()
                rates[name] = rate()
                if number:
                    walls[name].append(time.perf_counter() - begin)
    apart = max(abs(a - b) for name in sides for a, b in zip(rates[name], rates["numpy"], strict=True))
    assert apart < 1e-9, f"win rates differ by {apart} points"
    return {
        "systems": systems,
        "items": items,
        "rounds": rounds,
        "alpaca_eval": alpaca_eval.version,
        "seconds": {name: statistics.median(own) for name, own in walls.items()},
        "ratio": {name: paired(own, walls["pit evaluate"]) for name, own in walls.items()},
        "rates_differ_by": apart,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--systems", type=int, default=57)
    parser.add_argument("--items", type=int, default=805)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    figures = measure(options.systems, options.items, options.rounds)
    for name, seconds in figures["seconds"].items():
        print(f"{name:14} {seconds:6.1f} s  x{figures['ratio'][name]:.2f}")
    save(figures, options.json)


if __name__ == "__main__":
    main()
