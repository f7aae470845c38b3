"""Measures a whole stage of RL on SmolLM2-135M, against TRL's unchanged trainer on the same models and data.

A small run of the recipe `smol`, with one step in each stage, makes the models (once, under build/bench). Then our
trainer and TRL's each train the improver for `--steps` steps on references from the data. A step has 64 answers of at
most 40 tokens in groups of 8; the adapters of the last ten layers are trained, in the type that the machine computes
fastest. Each trains in a fresh process, ours first, from its start to the end: imports, models, training, saving.

* ours is the stage of `pit run`. It also checks the KL anchor and measures the quality of the answers;
* stock is RLOOTrainer: `generate` samples, and TRL receives R_PIT as a model, so R_PIT reads padded rows.

A ratio is stock / ours: above 1, ours is faster. A step's seconds are those that the trainers log themselves, without
the step of the optimizer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

from common import ROOT, SMOLLM2, paired, parser_of, save, smollm2

RUN = ROOT / "build" / "bench" / "smol"
STAGE = "rl-0-data"
ONE_STEP = ("policy_sft", "reward", "improver_sft", "gap", "policy_rl")


def pit_run(until: str, steps: int) -> None:
    few = [f"model.base={SMOLLM2}", "data.pairs=300", "evaluation.fresh_pairs=2", "evaluation.items=2"]
    few += [f"{section}.max_steps=1" for section in ONE_STEP]
    few += [f"curriculum.rl.{name}" for name in (f"max_steps={steps}", "probe_items=1", "probe_every=1000")]
    command = ["-m", "pitlm.cli.main", "run", "smol", "--out", str(RUN), "--update", "--until", until]
    settings = [word for one in few for word in ("--set", one)]
    done = subprocess.run([sys.executable, *command, *settings], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pit run smol failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def ours(steps: int) -> list[float]:
    """The seconds of each step of the stage in `pit run`."""
    shutil.rmtree(RUN / STAGE, ignore_errors=True)
    pit_run(STAGE, steps)
    rows = [json.loads(line) for line in (RUN / STAGE / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["step_time"] for row in rows if "step_time" in row]


def stock(steps: int) -> list[float]:
    """The seconds of each step of TRL's trainer, in a process of its own."""
    command = [sys.executable, __file__, "--stock"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"TRL's trainer failed:\n{done.stderr[-3000:]}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    assert len(seconds) == steps, seconds
    return seconds


def train_stock() -> None:
    """Train as TRL's documentation shows it, with the models, the rows and the arguments of the run's stage."""
    from datasets import Dataset

    from pitlm.method.common import make_trainer
    from pitlm.method.curriculum import sample_references
    from pitlm.method.rl import rl_arguments
    from pitlm.models.loading import load_model, quiet
    from pitlm.run.context import Context
    from pitlm.run.folder import stored_recipe

    # isort: split
    from trl import RLOOTrainer  # after pitlm, which quiets what it imports

    quiet()
    warnings.simplefilter("ignore")
    recipe = stored_recipe(RUN)
    run, stage = Context(recipe, RUN), recipe.curriculum.stage_list[0]
    shown = [run.template.improver_messages(x, y_ref) for x, y_ref in sample_references(run, stage)]
    bench = run.bench(RUN / "stock", run.model("improver-sft"), "improver")
    reward = load_model(run.model("gap"), run.tokenizer, recipe.model.dtype, writes=False)
    reward.set_attn_implementation("sdpa")  # as transformers loads it; pitlm's own reads trees
    args = rl_arguments(stage.rl, bench)
    args.chat_template_kwargs = {}  # ours cannot be passed to a reward model
    trainer = make_trainer(
        RLOOTrainer,
        bench.load(),
        bench,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": shown}),
        reward_funcs=reward,
        reward_processing_classes=run.tokenizer,
    )
    trainer.train()
    trainer.save_model(str(bench.model_folder))
    shutil.rmtree(bench.folder)
    print(json.dumps([row["step_time"] for row in trainer.state.log_history if "step_time" in row]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    smollm2()  # is there, or this ends with a message
    pit_run("gap", options.steps)
    walls: dict[str, list[float]] = {"ours": [], "stock": []}
    steps: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(options.rounds):
        for name, train in (("ours", ours), ("stock", stock)):
            begin = time.perf_counter()
            logged = train(options.steps)
            walls[name].append(time.perf_counter() - begin)
            steps[name].append(statistics.median(logged))
    return {
        "steps": options.steps,
        "rounds": options.rounds,
        "stage_ratio": paired(walls["stock"], walls["ours"]),
        "step_ratio": paired(steps["stock"], steps["ours"]),
        **{f"{name}_stage_seconds": statistics.median(own) for name, own in walls.items()},
        **{f"{name}_step_seconds": statistics.median(own) for name, own in steps.items()},
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stock", action="store_true", help="Internal: train with TRL alone.")
    options = parser.parse_args()
    if options.stock:
        return train_stock()
    figures = measure(options)
    for what in ("stage", "step"):
        print(
            f"{what:6} x{figures[f'{what}_ratio']:.2f}  "
            f"({figures[f'stock_{what}_seconds']:.1f} -> {figures[f'ours_{what}_seconds']:.1f} s)"
        )
    save(figures, options.json)


if __name__ == "__main__":
    main()
