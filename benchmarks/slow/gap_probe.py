"""Measures how often R_PIT and R_P of quickstart runs score a perfect answer above the same answer with one flaw.

    python benchmarks/slow/gap_probe.py --runs runs/seeds/seed-0 runs/seeds/seed-1 --json gap_probe.json

Also the share of 1,000 pairs of a clerk's answers that the model ranks as the truth does. Chance is 50% in each column.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch

from pitlm.core.nouns import Improvement, Prompt
from pitlm.models.scorers import GapModel, Gaps, RewardDifference, RewardModel
from pitlm.worlds.pocket import COURTESY, FACTS, PADDING, RUDE, draw_request, draw_response, utility, written

REQUESTS, PAIRS = 200, 1000


def answers(rng: random.Random) -> tuple[Prompt, str, dict[str, str]]:
    """A request for two facts, a clerk's answer, and the perfect answer with its flawed versions."""
    while len((request := draw_request(rng)).asked) < 2:
        pass
    first, second = (f"{name} {request.facts[name]}" for name in request.asked)
    name = request.asked[1]
    wrong = rng.choice([value for value in FACTS[name] if value != request.facts[name]])
    kind = COURTESY[0]
    sentences = {
        "perfect": (kind, first, second),
        "first fact missing": (kind, second),
        "second fact missing": (kind, first),
        "wrong fact": (kind, first, f"{name} {wrong}"),
        "no courtesy": (first, second),
        "padding": (kind, first, second, PADDING[1]),
        "rude": (RUDE[0], first, second),
    }
    return request.as_prompt(), draw_response(rng, request), {key: written(own) for key, own in sentences.items()}


def pair(rng: random.Random) -> tuple[Improvement, bool]:
    """Two clerk's answers of different utility, one as the reference, and whether the other is better."""
    while True:
        request = draw_request(rng)
        x = request.as_prompt()
        y, reference = draw_response(rng, request), draw_response(rng, request)
        if utility(x, y) != utility(x, reference):
            return Improvement(x, reference, y), utility(x, y) > utility(x, reference)


@torch.no_grad()
def probed(model: Gaps) -> dict[str, float]:
    """Share of requests in which the perfect answer has the larger gap, by flaw, and share of pairs ranked right."""
    rng = random.Random(7)
    asked = [answers(rng) for _ in range(REQUESTS)]
    items = [Improvement(x, reference, y) for x, reference, own in asked for y in own.values()]
    gaps = model.gaps(items).view(REQUESTS, -1)
    names = list(asked[0][2])
    found = {name: float((gaps[:, 0] > gaps[:, n]).float().mean()) for n, name in enumerate(names) if n}
    pairs = [pair(rng) for _ in range(PAIRS)]
    signs = (model.gaps([item for item, _ in pairs]) > 0).tolist()
    right = [sign is better for sign, (_, better) in zip(signs, pairs, strict=True)]
    return {**found, "pairs": sum(right) / PAIRS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of quickstart runs with R_PIT")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for root in options.runs:
        reward = RewardDifference(RewardModel.from_pretrained(root / "reward" / "model"))
        for model in (GapModel.from_pretrained(root / "gap" / "model"), reward):
            name = f"{root.name} {'R_PIT' if isinstance(model, GapModel) else 'R_P'}"
            figures[name] = probed(model)
            print(name, ", ".join(f"{flaw} {100 * share:.1f}%" for flaw, share in figures[name].items()), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
