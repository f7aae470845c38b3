"""Checks the promise of `pit calibrate` over runs of the pocket world: harm, gain and tokens, as Markdown tables.

    python benchmarks/slow/calibration.py runs/seeds/seed-0 runs/seeds/seed-1 --json calibration.json

The benchmark calibrates a copy of each run, because `pit calibrate` writes beside the gap model. It chooses the
margin on the validation fold, on the test prompts that the run's evaluation does not use, and on new prompts
(``--further``). The columns: "held out" has the prompts of the evaluation; "fresh" has other new prompts, where the
loop runs as a user would run it; "always" means "always accept, five rounds". No new prompt is in a fold. The truth
judges. Exit code 1 if R_PIT and R_P together make more fresh answers worse than promised, keep less than 90% of the
gain, or generate more than half of the tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Prompt
from pitlm.data.folds import read_folds
from pitlm.engines.generators import Improver, Policy
from pitlm.evaluate.statistics import share
from pitlm.loop.calibration import Promise
from pitlm.loop.loop import GapScorer, improve_many
from pitlm.loop.margin import calibrate
from pitlm.models.scorers import GapModel, GuardedGap, load_gaps
from pitlm.run.calibrate import fresh_answers
from pitlm.run.context import Context
from pitlm.run.folder import stored_recipe
from pitlm.run.judges import truth
from pitlm.worlds import pocket as world

HARM, CONFIDENCE, ROUNDS = 0.02, 0.9, 5
GAIN, TOKENS = 0.9, 0.5
AROUND = "R_PIT around the SFT-only improver"


def calibrated(run: Path, fresh: int, further: int) -> dict[str, Any]:
    """Return the figures of one run, by scorer."""
    prompts = fresh_prompts(run, fresh + further)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(run, Path(folder) / run.name, ignore=shutil.ignore_patterns("logs", "checkpoint*"))
        out = Path(folder) / "curve.json"
        command = [sys.executable, "-m", "pitlm.cli.main", "calibrate", "--run", copy, "--json", out]
        settings = ["--harm", HARM, "--confidence", CONFIDENCE, "--rounds", ROUNDS]
        if further:
            more = Path(folder) / "further.jsonl"
            more.write_text("".join(json.dumps({"prompt": x.as_messages()}) + "\n" for x in prompts[fresh:]))
            settings += ["--prompts", more]
        done = subprocess.run([str(part) for part in (*command, *settings)], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            sys.exit(f"{run}: pit calibrate ended with {done.returncode}")
        figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        figures[GuardedGap.name]["fresh"] = in_use(copy, prompts[:fresh])
        figures[AROUND] = around_another(copy)
        return figures


def around_another(run: Path) -> dict[str, Any]:
    """Calibrate R_PIT alone around an improver that was not trained with R_PIT: the SFT-only improver."""
    context = Context(stored_recipe(run), run)
    scorer: dict[str, GapScorer] = {AROUND: GapModel.from_pretrained(context.model("gap"))}
    improver = Improver.from_pretrained(context.model("improver-sft"))
    settings = LoopSection(rounds=ROUNDS, temperature=context.recipe.loop.temperature)
    judge = context.judge(context.bases())
    made = calibrate(
        scorer,
        *fresh_answers(context, None),
        improver=improver,
        settings=settings,
        promise=Promise(harm=HARM, confidence=CONFIDENCE),
        pairs=context.folds["test"],
        judge=judge.name,
        score=judge.score,
        seed=context.seed("calibration"),
    )
    return made[AROUND].as_dict()


def in_use(run: Path, prompts: list[Prompt]) -> dict[str, Any]:
    """Return the share of fresh answers that the calibrated loop makes worse, with its exact 95% interval."""
    recipe = stored_recipe(run)
    policy, improver = run / recipe.policy_stage / "model", run / recipe.improver_stage / "model"
    temperature = recipe.evaluation.policy_temperature
    answers = Policy.from_pretrained(policy).answer(prompts, temperature=temperature, seed=1)
    originals = [answer.text for answer in answers]
    traces = improve_many(
        prompts,
        originals,
        improver=Improver.from_pretrained(improver),
        gap=load_gaps(run / "gap" / "model", run / "reward" / "model"),
        rounds=ROUNDS,
        temperature=recipe.loop.temperature,
        seed=2,
    )
    before, after = (truth().score(prompts, texts) for texts in (originals, [trace.final for trace in traces]))
    harm = share([b - a > 1e-6 for b, a in zip(before, after, strict=True)])
    return {"items": len(prompts), "worse": round(harm["estimate"] * len(prompts)), "harm": harm}


def fresh_prompts(run: Path, count: int) -> list[Prompt]:
    known = {pair.prompt for pairs in read_folds(run / "data").values() for pair in pairs}
    rng, found = random.Random("calibration"), dict[Prompt, None]()
    while len(found) < count:
        prompt = world.draw_request(rng).as_prompt()
        if prompt not in known:
            found[prompt] = None
    return list(found)


def line(name: str, found: dict[str, Any]) -> str:
    kept, always = found["held_out"], found["held_out_always"]
    margin = "" if kept["margin"] is None else f"{kept['margin']:.2f}"
    cells = (
        name,
        margin,
        percent(found["chosen"]["harm"]),
        percent(kept["harm"]),
        percent(found["fresh"]["harm"]) if "fresh" in found else "",
        percent(always["harm"]),
        f"{kept['gain']:+.3f} of {always['gain']:+.3f}: {kept['gain'] / always['gain']:.0%}",
        f"{kept['tokens']:.1f} of {always['tokens']:.1f}: {kept['tokens'] / always['tokens']:.0%}",
    )
    return "| " + " | ".join(cells) + " |"


def percent(value: dict[str, float]) -> str:
    return f"{100 * value['estimate']:.1f}% [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def pooled(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join all runs: shares and means over all their items."""

    def joined(name: str) -> dict[str, Any]:
        outcomes = [run[name] for run in runs]
        items, worse = (sum(outcome[key] for outcome in outcomes) for key in ("items", "worse"))
        means = {
            key: sum(o[key] * o["items"] for o in outcomes) / items for key in ("gain", "tokens") if key in outcomes[0]
        }
        harm = share([number < worse for number in range(items)])
        return {"margin": None, "items": items, "worse": worse, "harm": harm, **means}

    names = ("chosen", "held_out", "held_out_always", "fresh")
    return {name: joined(name) for name in names if name in runs[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", default=sorted(Path("runs/seeds").glob("seed-*")))
    parser.add_argument("--fresh", type=int, default=3000, help="new prompts that test the loop")
    parser.add_argument("--further", type=int, default=0, help="more new prompts to choose the margin on")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.runs:
        parser.error("found no runs, expected their folders (`make seeds` makes five)")
    found = {str(run): calibrated(run, arguments.fresh, arguments.further) for run in arguments.runs}
    held = True
    for scorer in next(iter(found.values())):
        runs = [figures[scorer] for figures in found.values()]
        everything = pooled(runs)
        print(f"\n{scorer}, promise {HARM:.0%} with confidence {CONFIDENCE:.0%}\n")
        print(
            "| run | margin | made worse: chosen on | held out | fresh | always | gain, held out | tokens, held out |"
        )
        print("| --- " * 8 + "|")
        for name, figures in found.items():
            print(line(Path(name).name, figures[scorer]))
        print(line("all", everything))
        kept, always = everything["held_out"], everything["held_out_always"]
        if scorer == GuardedGap.name:
            held = (
                everything["fresh"]["harm"]["estimate"] <= HARM
                and kept["gain"] >= GAIN * always["gain"]
                and kept["tokens"] <= TOKENS * always["tokens"]
            )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
