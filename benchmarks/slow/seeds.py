"""Checks the quickstart's claims over seeds: one run and one row of a Markdown table for each seed.

    python benchmarks/slow/seeds.py --seeds 0 1 2 3 4 --out runs/seeds --json seeds.json

The benchmark reads finished runs instead of repeating them. Exit code 1 if a claim fails for any seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pitlm.core.nouns import Prompt
from pitlm.io.atomic import read_json_lines
from pitlm.run.folder import stored_recipe
from pitlm.run.results import run_report
from pitlm.worlds.pocket import best_utility, utility

WAY = ("PIT after stage 0, 1 round", "PIT, 1 round, no stop rule", "PIT")
"""Systems whose way from the original answers' utility to the best utility is shown."""


def way(root: Path) -> list[float]:
    """Share of the way from the mean utility of the original answers to the best, for each system of ``WAY``."""
    items = read_json_lines(root / "evaluation" / "items.jsonl")
    prompts = [Prompt.of(item["prompt"]) for item in items]

    def total(system: str) -> float:
        return sum(utility(x, item["answers"][system]) for x, item in zip(prompts, items, strict=True))

    original, best = total("original"), sum(map(best_utility, prompts))
    return [(total(system) - original) / (best - original) for system in WAY]


def stage(root: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((root / name / "stage.json").read_text(encoding="utf-8"))
    return record


def claims(root: Path) -> dict[str, Any]:
    """Return the figures of the quickstart's claims, and whether each claim holds."""
    report = run_report(root, stored_recipe(root))
    assert report.summary is not None
    systems = {line.system: asdict(line) for line in report.systems}
    differences = report.summary.compared(report.judge, report.compared)
    against = {(line.first, line.second): asdict(line.delta) for line in differences}
    fresh = stage(root, "gap")["result"]["health"]["fresh_pairs"]
    changes = [stage(root, folder.name)["result"]["trend"]["change"] for folder in sorted(root.glob("rl-*"))]
    delta, gain = systems["PIT"]["delta"], against["PIT", "SFT-only improver"]
    one_round = against["PIT, 1 round, no stop rule", "SFT-only improver"]
    return {
        "items": report.summary.items,
        "delta": delta,
        "sft_delta": systems["SFT-only improver"]["delta"],
        "best_of_delta": systems["best-of-N with R_P"]["delta"],
        "pit_less_sft": gain,
        "one_round_less_sft": one_round,
        "fresh": fresh,
        "changes": changes,
        "way": way(root),
        "minutes": sum(json.loads(p.read_text(encoding="utf-8"))["seconds"] for p in root.glob("*/stage.json")) / 60,
        "holds": {
            "items": report.summary.items >= 400,
            "delta": delta["estimate"] >= 0.5 and delta["low"] >= 0.4,
            "beats SFT": gain["low"] > 0 and one_round["low"] > 0,
            "no hacking": all(change["high"] >= 0 for change in changes),
            "fresh pairs": fresh["estimate"] >= 0.8,
        },
    }


def interval(value: dict[str, float], scale: float = 100.0, digits: int = 1) -> str:
    low, high = scale * value["low"], scale * value["high"]
    return f"{scale * value['estimate']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = {}
    for seed in arguments.seeds:
        root = arguments.out / f"seed-{seed}"
        command = [
            sys.executable,
            "-m",
            "pitlm.cli.main",
            "run",
            arguments.recipe,
            "--seed",
            str(seed),
            "--out",
            str(root),
        ]
        subprocess.run(command, check=True)
        rows[seed] = claims(root)
    print(
        "| seed | PIT Delta | SFT-only Delta | best-of-N Delta | PIT minus SFT-only | 1 round minus SFT-only "
        "| R_PIT on fresh pairs | change of utility, last quarter of each RL stage "
        "| way to the best utility: after stage 0, after all stages, PIT | claims |"
    )
    print("| --- " * 10 + "|")
    for seed, row in rows.items():
        fresh = row["fresh"]
        broken = [name for name, held in row["holds"].items() if not held]
        cells = (
            interval(row["delta"]),
            interval(row["sft_delta"]),
            interval(row["best_of_delta"]),
            interval(row["pit_less_sft"]),
            interval(row["one_round_less_sft"]),
            f"{100 * fresh['estimate']:.1f}% [{100 * fresh['low']:.1f}, {100 * fresh['high']:.1f}]",
            "; ".join(interval(change, 1.0, 2) for change in row["changes"]),
            ", ".join(f"{100 * share:.0f}%" for share in row["way"]),
            "hold" if not broken else "broken: " + ", ".join(broken),
        )
        print(f"| {seed} | " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(all(row["holds"].values()) for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
