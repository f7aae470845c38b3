"""An ablation that the paper lacks: R_P(y) - R_P(y_ref) in place of R_PIT, in training and in the loop.

    python benchmarks/slow/reward_difference.py --runs runs/seeds/seed-0 runs/seeds/seed-1 --json ablation.json

The benchmark copies each finished run, keeps the stages before RL, and trains the RL stages again with the other
reward. It compares run and copy on the same prompts and the same first answers. It reads finished copies instead of
making them again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pitlm.evaluate.statistics import mean_interval

PIT, ONE, DIFFERENCE = "PIT", "PIT, 1 round, no stop rule", "PIT with R_P difference"
PAIRS = {"loop": (PIT, DIFFERENCE), "1 round": (ONE, ONE)}
"""Each comparison: a system of the run, and its counterpart in the copy."""


def ablate(root: Path, copy: Path) -> None:
    """Train the run with the other reward, in a folder of its own."""
    if not copy.exists():
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns("rl-*", "evaluation", "report*", "run.lock"))
    command = [sys.executable, "-m", "pitlm.cli.main", "run", str(root / "recipe.json"), "--out", str(copy), "--update"]
    subprocess.run([*command, "--set", "curriculum.reward=reward_difference"], check=True)


def signs(root: Path, system: str) -> np.ndarray[Any, Any]:
    """Return 1, 0 or -1 for each held-out prompt: better than the original, equal, worse."""
    lines = (root / "evaluation" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["first"] == system]
    return np.array([np.sign(row["scores"][0] - row["scores"][1]) for row in rows])


def figures(root: Path, copy: Path) -> dict[str, Any]:
    found = {}
    for name, (ours, theirs) in PAIRS.items():
        gap, difference = signs(root, ours), signs(copy, theirs)
        for key, values in (("R_PIT", gap), ("R_P difference", difference), ("less", gap - difference)):
            interval = mean_interval(values.tolist())
            found[f"{name}, {key}"] = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
    return found


def points(interval: dict[str, float]) -> str:
    return "{estimate:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{name: 100 * v for name, v in interval.items()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of finished quickstart runs")
    parser.add_argument("--out", type=Path, default=Path("build/reward-difference"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {}
    for root in options.runs:
        ablate(root, options.out / root.name)
        rows[root.name] = figures(root, options.out / root.name)
    columns = list(next(iter(rows.values())))
    print(f"| run | {' | '.join(columns)} |\n" + "| --- " * (len(columns) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(points(row[column]) for column in columns) + " |")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
