"""What `pit calibrate` promises, over seeds: harm, gain and tokens on held-out prompts, as a Markdown table.

    python benchmarks/slow/calibration.py runs/seeds/seed-0 runs/seeds/seed-1 --json calibration.json

Each run is copied, because calibrating writes beside its gap model. The margin is chosen on prompts of the validation
fold and on those of the test fold that the run's evaluation leaves; the figures are from those that it has. "Always" is
"always accept, five rounds". Exit code 1 if, over all seeds, the share made worse is above the promise, less than 90% of
the gain is kept, or more than half of the tokens are generated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

HARM, CONFIDENCE, ROUNDS = 0.02, 0.9, 5
GAIN, TOKENS = 0.9, 0.5


def calibrated(run: Path) -> dict[str, Any]:
    """The figures of one run, by scorer."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(run, Path(folder) / run.name, ignore=shutil.ignore_patterns("logs", "checkpoint*"))
        out = Path(folder) / "curve.json"
        command = [sys.executable, "-m", "pitlm.cli.main", "calibrate", "--run", copy, "--json", out]
        settings = ["--harm", HARM, "--confidence", CONFIDENCE, "--rounds", ROUNDS]
        done = subprocess.run([str(part) for part in (*command, *settings)], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            sys.exit(f"{run}: pit calibrate ended with {done.returncode}")
        figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return figures


def line(name: str, found: dict[str, Any]) -> str:
    kept, always = found["held_out"], found["held_out_always"]
    margin = "none" if kept["margin"] is None else f"{kept['margin']:.2f}"
    cells = (
        name,
        margin,
        share(found["chosen"]["harm"]),
        share(kept["harm"]),
        share(always["harm"]),
        f"{kept['gain']:+.3f} of {always['gain']:+.3f}: {kept['gain'] / always['gain']:.0%}",
        f"{kept['tokens']:.1f} of {always['tokens']:.1f}: {kept['tokens'] / always['tokens']:.0%}",
    )
    return "| " + " | ".join(cells) + " |"


def share(value: dict[str, float]) -> str:
    return f"{100 * value['estimate']:.1f}% [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def pooled(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All runs as one: shares over all their items, means of means (each run has as many items)."""

    def joined(name: str) -> dict[str, Any]:
        outcomes = [run[name] for run in runs]
        items, worse = (sum(outcome[key] for outcome in outcomes) for key in ("items", "worse"))
        interval = binomtest(worse, items).proportion_ci(0.95)
        harm = {"estimate": worse / items, "low": float(interval.low), "high": float(interval.high), "n": items}
        means = {key: sum(o[key] * o["items"] for o in outcomes) / items for key in ("gain", "tokens")}
        return {"margin": None, "items": items, "worse": worse, "harm": harm, **means}

    return {name: joined(name) for name in ("chosen", "held_out", "held_out_always")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", default=sorted(Path("runs/seeds").glob("seed-*")))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.runs:
        parser.error("found no runs; make seeds makes them, or name some")
    found = {str(run): calibrated(run) for run in arguments.runs}
    held = True
    for scorer in next(iter(found.values())):
        runs = [figures[scorer] for figures in found.values()]
        everything = pooled(runs)
        print(f"\n{scorer}, promise {HARM:.0%} with confidence {CONFIDENCE:.0%}\n")
        print("| run | margin | made worse: chosen on | held out | always | gain | tokens |\n" + "| --- " * 7 + "|")
        for name, figures in found.items():
            print(line(Path(name).name, figures[scorer]))
        print(line("all", everything))
        kept, always = everything["held_out"], everything["held_out_always"]
        # R_PIT alone cannot judge the improver that was trained to please it; the run's own loop is the other one.
        if scorer != "R_PIT":
            held = (
                kept["harm"]["estimate"] <= HARM
                and kept["gain"] >= GAIN * always["gain"]
                and kept["tokens"] <= TOKENS * always["tokens"]
            )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
