"""How complete must a rubric be before prompting matches learning from preferences? Measured in the pocket world.

    python benchmarks/slow/self_refine.py --runs runs/seeds/seed-0 runs/seeds/seed-1 --json build/bench/self_refine.json

The benchmark reads finished runs of the quickstart and uses their prompts, first answers, PIT and judge. For each run
it trains one more model, the follower. The follower is M_P, trained further on answers and on small instruction
tasks, one criterion of the hidden utility each (find what breaks the criterion, mend it). Self-Refine with the
follower gets rubrics that name k of the K = 6 criteria. PIT sees no rubric. The table compares both, and the policy
after ordinary RLHF with the same number of RL steps. --out keeps the models of each run, and the benchmark does not
train them again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pocket_tasks import CRITERIA, GUIDE, Lesson, draw_lessons, lesson
from scipy import stats
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from pitlm.core.nouns import Answer, Prompt, Trace
from pitlm.core.training_sections import TrainSection
from pitlm.core.verdicts import Verdict
from pitlm.data.template import encode_completion, encode_prompts
from pitlm.engines.generators import Improver, Policy
from pitlm.evaluate.answer_figures import answer_figures, item_rows
from pitlm.evaluate.statistics import mean_interval
from pitlm.evaluate.summary import SystemFigures, summarise
from pitlm.io.atomic import write_text
from pitlm.loop.baselines.baseline import ORIGINAL, PIT, chosen_baselines
from pitlm.loop.baselines.own_baselines import resample
from pitlm.loop.baselines.self_refine import self_refine
from pitlm.loop.chains import held_to
from pitlm.loop.systems import Systems, TrainedModels, answer_of
from pitlm.method.curriculum import train_policy
from pitlm.method.setting import Workbench
from pitlm.method.supervised import TokenRow, policy_rows, train_on_rows
from pitlm.models.loading import load_model, load_tokenizer, quiet
from pitlm.models.scorers import GapModel, RewardModel
from pitlm.run.context import Context
from pitlm.run.evaluation import against_original
from pitlm.run.folder import stored_recipe

LAST, BEST, RLHF = "Self-Refine, last answer", "Self-Refine, best answer", "policy after ordinary RLHF"
BUDGETS = (12, 25, 50, 100)
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def said(told: Lesson) -> str:
    """Return the true feedback in the words of the lessons."""
    return f"yes {told.found}" if told.found else "no"


def asked(told: Lesson) -> Prompt:
    return GUIDE.ask(told.prompt, told.response, GUIDE.rubric[told.criterion])


def to_mend(told: Lesson) -> Prompt:
    return GUIDE.rewrite(told.prompt, [(told.response, GUIDE.rubric[told.criterion], said(told))])


def rows_of(lessons: Sequence[Lesson], tokenizer: Any, rng: random.Random) -> list[TokenRow]:
    """Make one conversation per lesson: questions about other criteria, the lesson's question, then the mending.

    The model learns every reply, so one response serves several questions.
    """
    shown: list[list[dict[str, str]]] = []
    replies: list[list[str]] = []
    for told in lessons:
        others = [lesson(told.prompt, told.response, name) for name in CRITERIA if name != told.criterion]
        # Most criteria hold in most responses. With all of them in, the model would learn to reply "no" and nothing
        # else.
        before = [turn for turn in others if rng.random() < (0.9 if turn.found else 0.3)]
        rng.shuffle(before)
        turns = [(asked(turn).as_messages()[-1], said(turn)) for turn in (*before, told)]
        turns += [(to_mend(told).as_messages()[-1], told.mended)] if told.found else []
        conversation = asked(told).as_messages()[:-1]
        for request, reply in turns:
            shown.append([*conversation, request])
            conversation = [*shown[-1], {"role": "assistant", "content": reply}]
        replies.append([reply for _, reply in turns])
    encoded = iter(encode_prompts(tokenizer, shown))
    rows = []
    for own in replies:
        parts: list[list[int]] = []
        for reply in own:
            parts += [next(encoded)[sum(map(len, parts)) :], encode_completion(tokenizer, reply)]
        rows.append(tuple(parts))
    return rows


def new_start(context: Context, folder: Path, layers: int) -> Any:
    """Write M_P with tokens for the words of the instructions, and with new layers that change nothing before training.

    Returns its tokenizer.
    """
    source = context.model("policy-sft")
    tokenizer = load_tokenizer(source)
    model, known = load_model(source, tokenizer), len(tokenizer)
    texts = [t.replace("{rubric}", name) for t in (GUIDE.feedback, GUIDE.refine) for name in GUIDE.rubric.values()]
    words = sorted({word for text in [*texts, "yes no"] for word in text.split()} - set(tokenizer.get_vocab()))
    # Every assistant turn ends with the end token, read or written. M_P's own template has only one turn of each role.
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in words])
    config = model.config
    before, width = config.num_hidden_layers, config.hidden_size
    config.num_hidden_layers = before + layers
    torch.manual_seed(context.seed("follower-start"))
    grown = AutoModelForCausalLM.from_config(config)
    grown.load_state_dict(model.state_dict(), strict=False)
    grown.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        # As wide as in a model from scratch: the library's narrow initial values learn late.
        grown.get_input_embeddings().weight[known:].normal_(0, width**-0.5)
        for layer in grown.model.layers[before:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    grown.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def teach(context: Context, folder: Path, options: argparse.Namespace) -> Policy:
    """Train the follower, M_P on answers and lessons, or load it from the folder if it is there."""
    section = TrainSection(learning_rate=options.rate, batch_size=options.batch)
    rng = random.Random(context.seed("follower"))
    if not (folder / "evaluation.json").is_file():
        tokenizer = new_start(context, folder / "start", options.layers)
        rows = rows_of(draw_lessons(rng, context.folds["sft"], options.lessons), tokenizer, rng)
        answering = policy_rows(context.folds["sft"], tokenizer, context.template)
        rows += rng.sample(answering, k=min(len(answering), len(rows) // 6))
        held_out = rows_of(draw_lessons(rng, context.folds["validation"], 300), tokenizer, rng)
        card = context.card("policy")
        bench = Workbench(folder, folder / "start", tokenizer, card, context.seed("follower"))
        train_on_rows("policy", rows, held_out, section, bench)
    return Policy.from_pretrained(folder / "model")


def exam(chat: Policy, context: Context, count: int) -> dict[str, dict[str, float]]:
    """Return the follower's shares of right replies on held-out prompts, by criterion and task.

    "fault seen" and "none seen": whether there is a fault; "found": the fault word for word; "mended": the mended
    response word for word; "fault gone": the fault is gone, whatever else changed.
    """
    lessons = draw_lessons(random.Random(context.seed("exam")), context.folds["test"], count)
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    replies = chat.answer([asked(told) for told in lessons], temperature=0.0, seed=0)
    for told, reply in zip(lessons, replies, strict=True):
        seen = not GUIDE.satisfied(reply.text)
        right[told.criterion]["fault seen" if told.found else "none seen"].append(seen is bool(told.found))
        if told.found:
            right[told.criterion]["found"].append(reply.text == said(told))
    faulty = [told for told in lessons if told.found]
    replies = chat.answer([to_mend(told) for told in faulty], temperature=0.0, seed=0)
    for told, reply in zip(faulty, replies, strict=True):
        right[told.criterion]["mended"].append(reply.text == told.mended)
        gone = not lesson(told.prompt, reply.text, told.criterion).found
        right[told.criterion]["fault gone"].append(gone)
    return {name: {task: float(np.mean(own)) for task, own in tasks.items()} for name, tasks in right.items()}


@dataclass
class Remembering:
    """Asks each conversation once under greedy decoding, which always gives the same reply."""

    chat: Policy
    replies: dict[Prompt, Answer] = field(default_factory=dict)

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seed: int) -> list[Answer]:
        if temperature > 0:
            return self.chat.answer(prompts, temperature=temperature, seed=seed)
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.replies]
        made = self.chat.answer(fresh, temperature=0.0, seed=0)
        self.replies.update(zip(fresh, made, strict=True))
        return [self.replies[prompt] for prompt in prompts]


def rubrics(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return all subsets of the criteria, or a random sample of each size."""
    rng = random.Random("rubrics")
    found = []
    for size in range(len(CRITERIA) + 1):
        subsets = list(itertools.combinations(CRITERIA, size))
        found += sorted(rng.sample(subsets, k=min(options.subsets, len(subsets))))
    return found


@dataclass
class Desk:
    """One run's prompts and first answers, and the judge of the systems that improve them."""

    context: Context
    prompts: list[Prompt]
    originals: list[Answer]

    def judge(self, systems: dict[str, list[Trace]]) -> tuple[list[SystemFigures], dict[str, list[float]]]:
        """Return the figures of each system, and each item's verdict as a number: 1, 0 or -1."""
        answers = {ORIGINAL: [Answer(y.text) for y in self.originals]}
        answers |= {name: [answer_of(trace) for trace in traces] for name, traces in systems.items()}
        rows = self.context.judge(self.context.bases()).judge(against_original(self.prompts, answers))
        known = answer_figures(item_rows(self.prompts, answers, lambda text: len(text.split())))
        resamples = self.context.recipe.evaluation.resamples
        summary = summarise(rows, answered=known, rank=None, resamples=resamples)
        sign = {Verdict.WIN: 1.0, Verdict.TIE: 0.0, Verdict.LOSS: -1.0}
        signs = {name: [sign[row.verdict] for row in rows if row.first == name] for name in systems}
        return [line for line in summary.systems if line.system != ORIGINAL], signs


def named(root: Path) -> str:
    """The name of a run: of its folder, and of the folder around it in runs of `pit reproduce`."""
    return root.name if root.name != "as-it-is" else root.parent.name


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train, examine and compare for one run; return all figures."""
    context = Context(stored_recipe(root), root)
    own = options.out / named(root)
    desk, systems = read_run(context, options)
    began = time.perf_counter()
    chat = Remembering(teach(context, own / "follower", options))
    taught = time.perf_counter() - began
    print(f"{root}: follower ready after {taught:.0f} s", flush=True)
    result: dict[str, Any] = {"run": named(root), "seed": context.recipe.seed, "items": len(desk.prompts)}
    result["parameters"] = chat.chat.model.num_parameters()
    result["exam"] = exam(chat.chat, context, options.exam)
    y0, settings = [y.text for y in desk.originals], {"chat": chat, "rounds": options.rounds}
    others = {**systems.traces(chosen_baselines(context.recipe)), RLHF: rlhf(context, desk, own / "policy-rl")}
    lines: list[dict[str, Any]] = []
    signs: dict[str, dict[int, list[list[float]]]] = {LAST: defaultdict(list), BEST: defaultdict(list)}
    for names in rubrics(options):
        made = {}
        for name, best in ((LAST, False), (BEST, True)):
            given = {
                **settings,
                "guide": GUIDE.model_copy(update={"rubric": {name: GUIDE.rubric[name] for name in names}}),
                "temperature": options.temperature,
                "best": best,
            }
            made[name] = self_refine(desk.prompts, y0, **given)
        figures, verdicts = desk.judge(made)
        for line in figures:
            lines.append({"criteria": names, **asdict(line)})
            signs[line.system][len(names)].append(verdicts[line.system])
    result["rubrics"] = lines
    result["by_size"] = {
        name: {size: asdict(mean_interval(np.mean(own, axis=0).tolist())) for size, own in sizes.items()}
        for name, sizes in signs.items()
    }
    whole = {**made, **others}
    result["systems"] = [asdict(line) for line in desk.judge(whole)[0]]
    result["budgets"] = {
        budget: [asdict(x) for x in desk.judge({n: [held_to(t, budget) for t in ts] for n, ts in whole.items()})[0]]
        for budget in BUDGETS
    }
    for temperature in options.temperatures:
        given = {**settings, "guide": GUIDE, "temperature": temperature}
        lines_at, _ = desk.judge({f"{LAST}, temperature {temperature:g}": self_refine(desk.prompts, y0, **given)})
        result["systems"] += [asdict(line) for line in lines_at]
    return result


def read_run(context: Context, options: argparse.Namespace) -> tuple[Desk, Systems]:
    """Return the run's prompts and first answers, and its systems, which may use the largest budget."""
    text = (context.root / "evaluation" / "items.jsonl").read_text(encoding="utf-8")
    items = [json.loads(line) for line in text.splitlines()][: options.items]
    prompts = [Prompt.of(item["prompt"]) for item in items]
    tokenizer = context.tokenizer
    originals = [Answer(y, len(encode_completion(tokenizer, y))) for y in (item["answers"][ORIGINAL] for item in items)]
    other = context.recipe.other_policy_stage
    models = TrainedModels(
        policy=Policy.from_pretrained(context.model(context.recipe.policy_stage)),
        improver=Improver.from_pretrained(context.model(context.recipe.improver_stage)),
        corrector=Improver.from_pretrained(context.model("improver-sft")),
        gap=GapModel.from_pretrained(context.model("gap")),
        reward=RewardModel.from_pretrained(context.model("reward")),
        other_policy=Policy.from_pretrained(context.model(other)) if other else None,
    )
    temperature, tokens = context.recipe.evaluation.policy_temperature, BUDGETS[-1]
    given = prompts, originals, models, context.recipe.loop, temperature, context.seed, tokens
    return Desk(context, prompts, originals), Systems(*given, open_improver=partial(context.open, Improver))


def rlhf(context: Context, desk: Desk, folder: Path) -> list[Trace]:
    """Train M_P with RLOO on R_P for as many steps as all of PIT's stages, and return its new answers.

    Where the original answers come from a policy after RLHF, these steps are added to the steps of that RLHF.
    """
    curriculum, first = context.recipe.curriculum, context.recipe.policy_rl
    steps = sum(stage.rl.max_steps for stage in curriculum.stage_list)
    steps += first.max_steps if first and context.recipe.policy_stage != "policy-sft" else 0
    section = curriculum.rl.model_copy(update={"max_steps": steps})
    folder.mkdir(parents=True, exist_ok=True)
    train_policy(context, section, folder)
    policy = Policy.from_pretrained(folder / "model")
    temperature = context.recipe.evaluation.policy_temperature
    drawn = policy.answer(desk.prompts, temperature=temperature, seed=context.seed("original"))
    return resample(desk.prompts, [y.text for y in desk.originals], [[answer] for answer in drawn])


def over_runs(intervals: Sequence[dict[str, float]]) -> tuple[float, float, float]:
    """Return the mean over runs and its 95% interval by Student's t; for one run, its interval over items."""
    if len(intervals) == 1:
        return bounds(intervals[0])
    values = [interval["estimate"] for interval in intervals]
    mean, half = float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def percent(low_high: tuple[float, float, float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in low_high))


def bounds(interval: dict[str, float]) -> tuple[float, float, float]:
    return interval["estimate"], interval["low"], interval["high"]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return three tables: Delta by k and run, every system with its Delta within each budget, and every criterion."""
    runs = [result["run"] for result in results]
    lines = [
        f"| k | {' | '.join(runs)} | over runs | subsets, over runs | reach PIT |",
        "| --- " * (len(runs) + 4) + "|",
    ]
    line_of = {r["run"]: next(s for s in r["systems"] if s["system"] == PIT)["delta"] for r in results}
    for name in (LAST, BEST):
        lines.append(f"| {name} |" + " |" * (len(runs) + 3))
        for size in range(len(CRITERIA) + 1):
            cells = [percent(bounds(result["by_size"][name][size])) for result in results]
            mean = over_runs([result["by_size"][name][size] for result in results])
            own = [
                (line["delta"]["estimate"], line_of[result["run"]]["estimate"])
                for result in results
                for line in result["rubrics"]
                if line["system"] == name and len(line["criteria"]) == size
            ]
            spread = f"{100 * min(d for d, _ in own):+.0f} to {100 * max(d for d, _ in own):+.0f}"
            reach = f"{sum(d >= pit for d, pit in own)} of {len(own)}"
            lines.append(f"| {size} | {' | '.join(cells)} | {percent(mean)} | {spread} | {reach} |")
    cells = [percent(bounds(line_of[run])) for run in runs]
    lines.append(f"| PIT | {' | '.join(cells)} | {percent(over_runs(list(line_of.values())))} | | |")
    lines += ["", "| system | Delta | mean utility | generated tokens | prompt tokens | gain per 100 tokens | "
              + " | ".join(f"Delta within {budget} tokens" for budget in BUDGETS) + " |"]  # fmt: skip
    lines.append("| --- " * (6 + len(BUDGETS)) + "|")
    for name in [line["system"] for line in results[0]["systems"]]:
        own = [line for result in results for line in result["systems"] if line["system"] == name]
        gains = [line["gain_per_100_tokens"] for line in own]
        row = [
            percent(over_runs([line["delta"] for line in own])),
            f"{np.mean([line['quality']['estimate'] for line in own]):.2f}",
            f"{np.mean([line['answered']['generated_tokens'] for line in own]):.1f}",
            f"{np.mean([line['answered']['prompt_tokens'] for line in own]):.1f}",
            f"{np.mean([gain['estimate'] for gain in gains]):+.2f}" if all(gains) else "-",
        ]
        for budget in BUDGETS:
            held = [x["delta"]["estimate"] for r in results for x in r["budgets"][budget] if x["system"] == name]
            row.append(f"{100 * float(np.mean(held)):+.1f}" if held else "")
        lines.append(f"| {name} | {' | '.join(row)} |")
    lines += [
        "",
        "| criterion | Delta alone | Delta of all others | fault seen | none seen | found | mended | fault gone |",
    ]
    lines.append("| --- " * 8 + "|")
    for name in CRITERIA:
        rest = tuple(other for other in CRITERIA if other != name)
        cells = []
        for rubric in ((name,), rest):
            deltas = [
                line["delta"]
                for result in results
                for line in result["rubrics"]
                if line["system"] == LAST and tuple(line["criteria"]) == rubric
            ]
            cells.append(percent(over_runs(deltas)) if deltas else "")
        for task in ("fault seen", "none seen", "found", "mended", "fault gone"):
            cells.append(f"{100 * np.mean([result['exam'][name][task] for result in results]):.0f}%")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_figure(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw Delta against k, with a point for each rubric and a line for PIT."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    sizes = list(range(len(CRITERIA) + 1))
    for name, colour, shift in ((LAST, "tab:blue", -0.06), (BEST, "tab:orange", 0.06)):
        points = [
            (len(line["criteria"]) + shift, 100 * line["delta"]["estimate"])
            for result in results
            for line in result["rubrics"]
            if line["system"] == name
        ]
        axes.scatter(*zip(*points, strict=True), s=9, alpha=0.3, color=colour, linewidths=0)
        means = [over_runs([result["by_size"][name][size] for result in results]) for size in sizes]
        middle = [100 * mean for mean, _, _ in means]
        reach = [[100 * (m - low) for m, low, _ in means], [100 * (high - m) for m, _, high in means]]
        axes.errorbar([s + shift for s in sizes], middle, reach, color=colour, capsize=3, label=name)
    mean, low, high = over_runs([next(s for s in r["systems"] if s["system"] == PIT)["delta"] for r in results])
    axes.axhline(100 * mean, color="tab:green", label="PIT, which sees no rubric")
    axes.axhspan(100 * low, 100 * high, color="tab:green", alpha=0.15, linewidth=0)
    axes.set_xlabel(f"k: criteria that the rubric names, of {len(CRITERIA)}")
    axes.set_ylabel("Delta against the original (points)")
    axes.set_title(
        f"Pocket world, {len(results)} seed{'s' * (len(results) > 1)}, judged by the true utility", fontsize=10
    )
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of finished quickstart runs")
    parser.add_argument("--out", type=Path, default=Path("build/self-refine"), help="folder for models and figures")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--items", type=int, help="held-out prompts; default: those of the run")
    parser.add_argument("--subsets", type=int, default=20, help="largest number of rubrics of each size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0, help="of Self-Refine; 0 (greedy) suits a small model")
    parser.add_argument(
        "--temperatures", type=float, nargs="*", default=[0.4, 0.8], help="more temperatures, with the full rubric"
    )
    parser.add_argument("--lessons", type=int, default=48_000)
    parser.add_argument("--layers", type=int, default=2, help="layers that the follower has on top of M_P's")
    parser.add_argument("--rate", type=float, default=3e-3, help="the follower's learning rate")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--exam", type=int, default=1200, help="number of held-out lessons that test the follower")
    parser.add_argument("--again", action="store_true", help="measure again even if --out has figures")
    options = parser.parse_args()
    quiet()
    results = []
    for root in options.runs:
        stored = options.out / named(root) / "result.json"
        if options.again or not stored.is_file():
            write_text(stored, json.dumps(measure(root, options), indent=2) + "\n")
        results.append(json.loads(stored.read_text(encoding="utf-8"), object_hook=_numbered))
    print(table(results))
    if options.json:
        write_text(options.json, json.dumps(results, indent=2) + "\n")
    if options.figure:
        draw_figure(results, options.figure)
    return 0


def _numbered(values: dict[str, Any]) -> dict[Any, Any]:
    """Turn digits in keys back into numbers: k and the budgets are numbers, but JSON keys are strings."""
    return {int(key) if key.isdecimal() else key: value for key, value in values.items()}


if __name__ == "__main__":
    raise SystemExit(main())
