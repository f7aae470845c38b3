"""From the files of a run to what its report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pitlm.evaluate.trend import quality_trend
from pitlm.run.results import read_curve


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_quality_that_is_drawn_is_that_of_the_held_out_items(tmp_path: Path) -> None:
    folder = tmp_path / "rl-0-data"
    steps = [{"step": n, "reward": 0.5 * n, "kl_sequence": 0.1 * n, "probe": 99.0} for n in (1, 2, 3)]
    write(folder / "metrics.jsonl", [*steps, {"step": 3, "train_runtime": 1.0}])
    write(folder / "probe.jsonl", [{"step": 0, "quality": [1.0, 2.0]}, {"step": 2, "quality": [2.0, 4.0]}])
    curve = read_curve(folder, "true utility")
    assert curve["reward"] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert curve["true utility on held-out prompts"] == [(0, 1.5), (2, 3.0)]
    assert curve["KL to the SFT improver (nats per sequence)"] == [(1, 0.1), (2, 0.2), (3, 0.1 * 3)]


def measured(**quality: list[float]) -> list[dict[str, Any]]:
    return [{"step": int(step.removeprefix("at_")), "quality": values} for step, values in quality.items()]


def test_the_end_of_a_stage_is_compared_with_three_quarters_of_the_way() -> None:
    trend = quality_trend(measured(at_0=[0.0, 0.0], at_50=[9.0, 9.0], at_80=[1.0, 2.0], at_100=[2.0, 3.0]))
    assert (trend["late_step"], trend["last_step"]) == (80, 100)
    assert (trend["first"], trend["late"], trend["last"]) == (0.0, 1.5, 2.5)
    assert trend["change"]["estimate"] == 1.0


def test_the_end_of_a_stage_is_never_compared_with_itself() -> None:
    """With few measurements, a falling stage must not look level because the last one is compared with itself."""
    trend = quality_trend(measured(at_0=[2.0, 2.0], at_20=[2.0, 2.0], at_40=[1.0, 1.0]))
    assert (trend["late_step"], trend["change"]["high"]) == (20, -1.0)
    assert quality_trend(measured(at_0=[1.0], at_1=[2.0]))["late_step"] == 0
