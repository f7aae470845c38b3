"""One Markdown table of runs that differ in their seed: a column for each run, and the mean over them.

    python benchmarks/slow/runs.py runs/smol-0 runs/smol-1 runs/smol-2 --json runs.json

The rows are the Delta and the quality of each system, what PIT is ahead of the other systems, and how often the reward
models are right on held-out pairs. A run that has no evaluation yet (`pit run --until gap`) shows the latter alone.
Brackets are 95% intervals: in the column of a run over its items, in the last column Student's t over the runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.evaluate.statistics import Interval, mean_interval
from pitlm.loop.baselines.baseline import PIT
from pitlm.report.shape import HEALTH
from pitlm.run.folder import stage_result, stored_recipe
from pitlm.run.results import run_report

POINTS = (100, "+.1f")
FORMS = {"quality": (1, ".2f"), "right": (100, ".1f"), "Delta": POINTS, "PIT less": POINTS, "less bag of words": POINTS}
"""For the beginning of a row, up to the colon: the factor and the format of its figures."""
SHARES = {key: name for key, (name, _) in HEALTH.items() if key.startswith("held_out_pairs") or key == "fresh_pairs"}


def figures(root: Path) -> dict[str, Interval]:
    """The figures of one run by the names of their rows.

    Raises:
        InputError: the folder holds no run, or a file of the run is not as pitlm wrote it.
    """
    report = run_report(root, stored_recipe(root))
    found = {f"Delta: {line.system}": line.delta for line in report.systems if line.system != line.baseline}
    if report.summary:
        pairs = [(PIT, line.system) for line in report.systems]
        compared = report.summary.compared(report.judge, pairs)
        found |= {f"PIT less: {line.second}": line.delta for line in compared}
    found |= {f"quality: {line.system}": line.quality for line in report.systems if line.quality}
    shares = {f"right: {name}": report.health.get(key) for key, name in SHARES.items()}
    found |= {f"right: judge, {name}": share for name, share in report.judges.items()}
    found |= {name: share for name, share in shares.items() if isinstance(share, Interval)}
    above = stage_result(root, "gap")["health"]["above_floor"]
    return found | {f"less bag of words: {name}": Interval(**value) for name, value in above.items()}


def table(columns: Mapping[str, Mapping[str, Interval]]) -> str:
    """The table of the figures of each run; a figure that a run lacks is a dash there, and has no mean."""
    lines = [f"| | {' | '.join(columns)} | mean |", f"| --- | {'--- | ' * len(columns)}--- |"]
    for row in dict.fromkeys(name for found in columns.values() for name in found):
        factor, form = FORMS[row.partition(":")[0]]
        values = [found.get(row) for found in columns.values()]
        known = [value for value in values if value]
        mean = mean_interval([value.estimate for value in known]) if len(known) == len(values) > 1 else None
        cells = [cell(value, factor, form) for value in (*values, mean)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(value: Interval | None, factor: int, form: str) -> str:
    if value is None:
        return "-"
    estimate, low, high = (format(factor * number, form) for number in (value.estimate, value.low, value.high))
    return f"{estimate} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs of one recipe")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    try:
        columns = {str(root): figures(root) for root in options.runs}
    except InputError as error:
        parser.error(str(error))
    print(table(columns))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: {row: asdict(value) for row, value in found.items()} for name, found in columns.items()}
        options.json.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
