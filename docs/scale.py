"""Print the tables of docs/scale.md. With --write, put them there, and the planned figures into the recipes."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pitlm.core.packaged_recipes import RECIPES, find_recipe
from pitlm.core.recipe import LoraSection, Quantization, Recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.plan.hardware import assumed
from pitlm.plan.plan import Plan, plan_run
from pitlm.plan.sizes import KNOWN, Shape, Workload, known_workload

DOCUMENT = Path(__file__).with_name("scale.md")
PLANNED = re.compile(r"^# (PLANNED|Planned \(.*)$", re.MULTILINE)
PAIRS = (10_000, 100_000, 1_000_000, 10_000_000)
SIZES = {
    "0.5B": "Qwen/Qwen2.5-0.5B-Instruct",
    "3B": "meta-llama/Llama-3.2-3B-Instruct",
    "8B": "meta-llama/Llama-3.1-8B-Instruct",
    "70B": "meta-llama/Llama-3.3-70B-Instruct",
}
CARD_ORDER = ("rtx4090", "h100", "h200")
PRICE = 3.0
"""Assumed price of one H100 for an hour, in dollars."""


def base_recipe(steps: int) -> Recipe:
    """hh-llama-8b with ``steps`` steps in each RL stage."""
    return load_recipe(find_recipe("hh-llama-8b"), {"curriculum.rl.max_steps": str(steps)})


def plan_of(
    shape: Shape, pairs: int, *, peft: bool = True, quantize: Quantization | None = None, most: int = 4096
) -> Plan:
    """The plan on the fewest H100s that hold the run, at most ``most``.

    An RL stage has 200 steps at 160,800 pairs; steps grow with the square root of the pairs.
    """
    recipe = base_recipe(max(50, round(200 * (pairs / 160_800) ** 0.5)))
    adapters = LoraSection(quantize=quantize) if peft else None
    recipe = recipe.model_copy(update={"peft": adapters})
    work = Workload(pairs, 169, 85, 86)
    for devices in (2**doubling for doubling in range(13)):
        cards = replace(assumed("h100", "bfloat16"), devices=devices, price=PRICE)
        plan = plan_run(recipe, shape, work, cards)
        if plan.fits or devices >= most:
            break
    return plan


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def memory_table() -> str:
    rows = []
    for size, name in SIZES.items():
        shape = KNOWN[name]
        kinds: tuple[dict[str, Any], ...] = ({"quantize": "nf4"}, {}, {"peft": False})
        held = [plan_of(shape, 100_000, **kind) for kind in kinds]
        one = [plan_of(shape, 100_000, most=1, **kind) for kind in kinds]
        rows.append(
            [
                size,
                f"{shape.parameters / 1e9:.2f}",
                *(f"{plan.largest.peak / 1e9:,.0f} ({plan.largest.name})" for plan in one),
                *(str(plan.hardware.devices) for plan in held),
            ]
        )
    names = ("QLoRA", "LoRA", "full")
    header = ["size", "parameters, 10^9", *(f"{n}: GB, one device" for n in names), *(f"H100s, {n}" for n in names)]
    return table(header, rows)


def cost_table() -> str:
    rows = []
    for size, name in SIZES.items():
        for pairs in PAIRS:
            plan = plan_of(KNOWN[name], pairs)
            trained = sum(stage.trained for stage in plan.stages)
            written = sum(stage.generated for stage in plan.stages)
            flops = sum(stage.flops for stage in plan.stages)
            hours = plan.seconds / 3600
            rows.append(
                [
                    size,
                    f"10^{len(str(pairs)) - 1}",
                    f"{trained / 1e6:,.0f}",
                    f"{written / 1e6:,.1f}",
                    f"{flops:.1e}",
                    str(plan.hardware.devices),
                    f"{hours:,.1f}",
                    f"{plan.cost or 0:,.0f}",
                ]
            )
    header = ["size", "pairs", "M tokens trained", "M written", "FLOP", "H100s", "hours", "dollars"]
    return table(header, rows)


def where_table() -> str:
    groups = {
        "SFT": ("sft",),
        "R_P and judge": ("reward", "judge"),
        "R_PIT": ("gap",),
        "RL": ("rl-",),
        "evaluation": ("evaluation",),
    }
    rows = []
    for size, pairs in (("0.5B", 100_000), ("8B", 100_000), ("8B", 1_000_000), ("8B", 10_000_000)):
        plan = plan_of(KNOWN[SIZES[size]], pairs)
        shares = []
        for names in groups.values():
            spent = sum(s.seconds for s in plan.stages if any(name in s.name for name in names))
            shares.append(f"{100 * spent / plan.seconds:.0f}%")
        rows.append([f"{size}, 10^{len(str(pairs)) - 1}", *shares])
    return table(["size, pairs", *groups], rows)


def recipe_note(recipe: Recipe) -> str:
    """The comment line of a recipe: its plan on the smallest of a few cards that holds it, or on the largest card."""
    work, shape = known_workload(recipe)[0], Shape.of_model(recipe.model)
    plans = [plan_run(recipe, shape, work, assumed(name, recipe.model.dtype)) for name in CARD_ORDER]
    plan = next((plan for plan in plans if plan.fits), plans[-1])
    name, memory = plan.hardware.name, plan.hardware.memory / 1e9
    return (
        f"# Planned (pit doctor {recipe.name} --hardware {name}): {plan.seconds / 3600:.1f} hours and at most "
        f"{plan.largest.peak / 1e9:.0f} of {memory:.0f} GB (in {plan.largest.name}), at assumed rates."
    )


TABLES = {"memory": memory_table, "cost": cost_table, "where": where_table}


def filled(text: str) -> str:
    """Return the document with each table made anew between its two marks."""
    for name, make in TABLES.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda m, make=make: m[1] + make() + m[2], text, flags=re.DOTALL)
    return text


def main() -> None:
    if "--write" not in sys.argv:
        print("\n".join(make() for make in TABLES.values()))
        return
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    for path in RECIPES.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        if PLANNED.search(text):
            note = recipe_note(load_recipe(path).with_dtype(native_bfloat16=True))
            path.write_text(PLANNED.sub(note, text), encoding="utf-8")


if __name__ == "__main__":
    main()
