"""Measures how long `pit --help` and the help of each verb take, as a ratio to an empty Python program.

The commands run in turn, so that other load on the machine falls on all of them. A ratio of medians compares better
between machines than milliseconds do.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import parser_of, save

from pitlm.cli.main import VERBS

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import click'": ["-c", "import click"],
    **{
        " ".join(("pit", *verb, "--help")): ["-m", "pitlm.cli.main", *verb, "--help"]
        for verb in ([], *([name] for name in VERBS), ["data", "inspect"], ["data", "prepare"])
    },
}


def seconds(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the wall seconds of each command, once per round. A first, uncounted round warms the disk cache."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            wall = seconds(arguments)
            if number:
                taken[name].append(wall)
    return taken


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    medians = {name: statistics.median(walls) for name, walls in measure(options.rounds).items()}
    base = medians["python -c pass"]
    figures = {name: {"median_seconds": wall, "ratio": wall / base} for name, wall in medians.items()}
    for name, figure in figures.items():
        print(f"{name:26} {figure['median_seconds'] * 1000:7.1f} ms  x{figure['ratio']:.1f}")
    save({"rounds": options.rounds, "commands": figures}, options.json)


if __name__ == "__main__":
    main()
