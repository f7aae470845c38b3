"""Simulates verdicts with a known truth, and checks the intervals of Delta and the win rates at equal lengths.

The first table has the share of 95% intervals of Delta that hold the true Delta. With one verdict an item the share is
exact, over all outcomes; with several it is simulated, and verdicts on one item agree more than verdicts on two items.
The second table has the mean distance in points from a system's rate at equal lengths to the truth. The systems share a
part of their length differences to the baseline, which may correlate with the difficulty of the item.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from common import parser_of, save
from scipy import stats
from scipy.special import expit

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.alpaca import item_difficulty, length_controlled
from pitlm.evaluate.statistics import ratio_interval

WIN_RATES = (0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 0.995)
TIES = (0.0, 0.1, 0.25, 0.5)
ITEMS = (30, 50, 100, 200, 600)
ROWS = ((1, 0.0), (2, 0.5), (4, 1.0))
"""Verdicts of an item, and the share of items whose verdicts are all the same draw."""
SHARED = (0.0, 0.5, 0.8, 0.95)
HARD = (0.0, 0.5, -0.5)


def held(sums: Any, counts: Any, truth: float) -> bool:
    """Whether the interval of these items holds the true Delta."""
    found = ratio_interval([(sums, counts)], -1.0, 1.0, 0.95)
    return found.low - 1e-12 <= truth <= found.high + 1e-12


def coverage(items: int, win_rate: float, ties: float, rows: int, alike: float, draws: int, seed: int) -> float:
    """The share of the intervals that hold the true Delta."""
    won, lost = (1 - ties) * win_rate, (1 - ties) * (1 - win_rate)
    if rows == 1:
        wins, losses = (axis.ravel() for axis in np.meshgrid(np.arange(items + 1), np.arange(items + 1)))
        kept = wins + losses <= items
        wins, losses = wins[kept], losses[kept]
        likely = stats.multinomial.pmf(np.stack([wins, losses, items - wins - losses], 1), items, [won, lost, ties])
        total = 0.0
        for w, l, p in zip(wins, losses, likely, strict=True):
            if p > 1e-9:
                sums = np.repeat([1.0, -1.0, 0.0], [w, l, items - w - l])
                total += p * held(sums, np.ones(items), won - lost)
        return total
    generator = np.random.default_rng(seed)
    inside = 0
    for _ in range(draws):
        same = generator.random((items, 1)) < alike
        drawn = np.where(same, generator.random((items, 1)), generator.random((items, rows)))
        sums = (drawn < won).sum(1) - (drawn > 1 - lost).sum(1)
        inside += held(sums.astype(float), np.full(items, float(rows)), won - lost)
    return inside / draws


def several(systems: int, items: int, shared: float, hard: float, seed: int) -> tuple[dict[str, Any], Any, Any]:
    """Rows of systems against one baseline, their true win rates at equal lengths, and the true difficulties."""
    generator = np.random.default_rng(seed)
    skill, talk = generator.normal(-0.5, 1.0, (systems, 1)), generator.normal(0, 0.5, (systems, 1))
    long = generator.normal(size=items)
    difficulty = hard * long + math.sqrt(1 - hard**2) * generator.normal(size=items)
    gaps = talk + math.sqrt(shared) * long + math.sqrt(1 - shared) * generator.normal(size=(systems, items))
    p = expit(skill + np.tanh(gaps / gaps.std(axis=1, ddof=1, keepdims=True)) + difficulty)
    won, lengths = generator.random(p.shape) < p, (5000 + 1000 * gaps).clip(1).astype(int)
    against = {
        f"s{s}": [
            VerdictRow(
                f"{n:04}",
                f"s{s}",
                "base",
                Verdict.WIN if won[s, n] else Verdict.LOSS,
                lengths=(int(lengths[s, n]), 5000),
            )
            for n in range(items)
        ]
        for s in range(systems)
    }
    return against, expit(skill + difficulty).mean(axis=1), {f"{n:04}": float(d) for n, d in enumerate(difficulty)}


def equal_lengths(systems: int, items: int, shared: float, hard: float, runs: int) -> dict[str, float]:
    """Mean distance to the truth in points: as judged, alone, with our difficulties, with the true ones.

    Also the bias in points, and the share of intervals that hold the truth.
    """
    off: dict[str, list[float]] = {"raw": [], "alone": [], "together": [], "true difficulties": []}
    covered = []
    for run in range(runs):
        against, truth, known = several(systems, items, shared, hard, run)
        found = item_difficulty(against)
        for (name, rows), true in zip(against.items(), truth, strict=True):
            raw = np.mean([row.verdict is Verdict.WIN for row in rows])
            ways = {"alone": None, "together": found[name], "true difficulties": known}
            fits = {way: length_controlled(rows, difficulty=one) for way, one in ways.items()}
            off["raw"].append(float(raw - true))
            for way, fit in fits.items():
                assert fit is not None
                off[way].append(fit.win_rate.estimate - true)
            covered.append(fits["together"].win_rate.low <= true <= fits["together"].win_rate.high)  # type: ignore[union-attr]
    figures = {way: 100 * float(np.nanmean(np.abs(values))) for way, values in off.items()}
    return {**figures, "bias": 100 * float(np.mean(off["together"])), "coverage": float(np.mean(covered))}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="simulated samples for each cell of the first table")
    parser.add_argument("--runs", type=int, default=3, help="simulated leaderboards for each row of the second table")
    parser.add_argument("--systems", type=int, default=20)
    asked = parser.parse_args()
    cells = []
    print("win rate  items   coverage over ties and rows an item: least, most; losses expected")
    for win_rate in WIN_RATES if asked.draws else ():
        for items in ITEMS:
            own = [
                {
                    **{"win_rate": win_rate, "items": items, "ties": ties, "rows": rows},
                    "coverage": coverage(items, win_rate, ties, rows, alike, asked.draws, len(cells)),
                }
                for ties in TIES
                for rows, alike in ROWS
            ]
            shares = [cell["coverage"] for cell in own]
            few = [items * (1 - ties) * (1 - win_rate) for ties in (max(TIES), 0)]
            print(
                f"{win_rate:8.3f}  {items:5}   {min(shares):.3f}  {max(shares):.3f}   {few[0]:.1f} to {few[1]:.1f}",
                flush=True,
            )
            cells += own
    print("\nshared  hard   points off: raw, alone, together, with the true difficulties   bias   coverage")
    lengths = []
    for hard in HARD:
        for shared in SHARED:
            figures = equal_lengths(asked.systems, 805, shared, hard, asked.runs)
            four = "  ".join(f"{figures[way]:5.2f}" for way in ("raw", "alone", "together", "true difficulties"))
            print(
                f"{shared:6.2f}  {hard:4.1f}   {four}   {figures['bias']:+.2f}   {figures['coverage']:.3f}", flush=True
            )
            lengths.append({"shared": shared, "hard": hard, **figures})
    save({"coverage": cells, "equal_lengths": lengths}, asked.json)


if __name__ == "__main__":
    main()
