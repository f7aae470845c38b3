"""The work of each stage of a run: the first prepares the data, the others hand folders and settings to the method."""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError, MemoryFull, first_line
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison
from pitlm.data.dataset import Loaded, load_preferences
from pitlm.data.folds import cut_folds, unique_prompts, write_folds
from pitlm.data.template import fit_preferences
from pitlm.engines.generators import Policy
from pitlm.evaluate.gap_health import gap_health
from pitlm.evaluate.trend import quality_trend
from pitlm.io.atomic import write_json_lines, write_text
from pitlm.io.console import progress_bar
from pitlm.method.common import finished_metrics
from pitlm.method.curriculum import train_policy, train_stage
from pitlm.method.supervised import train_on_pairs
from pitlm.method.watch import PROBE, read_metrics
from pitlm.models.loading import load_shape, load_tokenizer, window_of
from pitlm.models.machine import is_out_of_memory, peak_memory, release_memory
from pitlm.models.scorers import GapModel, RewardModel
from pitlm.models.scratch import make_from_scratch
from pitlm.report.pages import render
from pitlm.run.context import Context
from pitlm.run.evaluation import evaluate
from pitlm.run.stages import PipelineStage
from pitlm.worlds.known import KNOWN

TEMPLATE_TOKENS = 48
"""Tokens allowed for the marks of the chat template and for the request, beside x, y_ref and y."""


WRITTEN = 256
"""Number of answers of the start model that are written to disk at once."""


def do_work(context: Context, stage: PipelineStage, folder: Path) -> dict[str, Any]:
    """Do a stage in its folder, going on from what an interrupted attempt left there.

    Returns:
        The stage's result, and under ``memory`` the most bytes that it held.

    Raises:
        InputError: the recipe asks for something that does not exist, or for more memory than there is.
    """
    release_memory()  # of the stage before
    try:
        return {**_do(context, stage, folder), "memory": peak_memory()}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        limits = "data.max_prompt_tokens or data.max_response_tokens"
        less = f"evaluation.batch_size ({context.recipe.evaluation.batch_size})"
        if stage.section is not None and finished_metrics(folder) is None:  # R_PIT is checked after its training
            key = stage.key
            rows = stage.section.batch_size // stage.section.accumulation
            less += f", the {rows} rows of a micro-batch (raise {key}.accumulation or set {key}.gradient_checkpointing)"
        raise MemoryFull(
            f"{stage.name}: the memory is full ({first_line(error)}). Lower {less}, {limits}; then give the command "
            "again with --update"
        ) from error


def _do(context: Context, stage: PipelineStage, folder: Path) -> dict[str, Any]:
    kind = stage.task
    if kind == "data":
        return prepare(context, folder)
    if kind == "evaluation":
        return evaluate(context, folder)
    if kind == "report":
        page = context.root / "report.html"  # at the root of the run, where people look for it
        write_text(page, render(context.report))
        return {"path": page.name}
    if kind == "policy-rl" or kind == "curriculum":
        curriculum = stage.curriculum
        result = train_stage(context, curriculum, folder) if curriculum else train_policy(context, stage.rl, folder)
        return {**result, "trend": quality_trend(read_metrics(folder / PROBE))}
    result = train_on_pairs(context, kind, stage.needs, stage.folds, stage.training, folder)
    return {**result, "health": _health(context, folder)} if kind == "gap" else result


def prepare(context: Context, folder: Path) -> dict[str, Any]:
    """Read the pairs, fit them to the lengths and cut them into folds.

    If the recipe starts from scratch, ``base`` in the folder gets a tokenizer and a model.
    """
    recipe, data = context.recipe, context.recipe.data
    longest = data.max_prompt_tokens + 2 * max(data.max_response_tokens, data.max_new_tokens or 0) + TEMPLATE_TOKENS
    if recipe.model.base is not None:  # before the start model writes for a long time
        _check_models(context, longest)
    loaded = _load(context, folder)
    if recipe.model.init is not None:
        raw = cut_folds(loaded.preferences, test=data.test, validation=data.validation, shares=data.folds)
        pairs = [pair for name in ("sft", "reward", "rl") for pair in raw[name]]
        texts = [y for p in pairs for y in (*(turn.content for turn in p.prompt.messages), p.chosen, p.rejected)]
        words = [*KNOWN[data.world].words, *recipe.template.ask.split()] if data.world else []
        seed = context.seed("base")
        make_from_scratch(recipe.model.init, texts, folder / "base", seed=seed, max_tokens=longest, words=words)
        _check_models(context, longest)
    places = [place for place, _ in loaded.origins]
    fitted = fit_preferences(loaded.preferences, context.tokenizer, context.template, data, places)
    if not fitted.pairs:
        raise InputError(
            f"{data.source}: found no pair within {data.max_prompt_tokens} prompt tokens and "
            f"{data.max_response_tokens} response tokens, expected some; raise data.max_prompt_tokens or "
            "data.max_response_tokens"
        )
    # Cut after trimming: prompts that differ only in what was trimmed are one prompt, and belong in one fold.
    folds = cut_folds(fitted.pairs, test=data.test, validation=data.validation, shares=data.folds)
    over_long = {"dropped": fitted.dropped, "trimmed": fitted.trimmed}
    return {**write_folds(folder, folds, loaded), "over_long": over_long, "refused": fitted.refused}


def _load(context: Context, folder: Path) -> Loaded:
    data = context.recipe.data
    if data.world:
        world = KNOWN[data.world]
        if world.written and context.recipe.model.base is None:
            raise InputError(f"model.base: found nothing, expected a chat model: it writes the answers of {world.name}")
        write = partial(_written, context, folder)
        pairs = world.make_preferences(data.pairs or world.pairs, context.recipe.seed, write, data.noise)
        return Loaded(pairs, len(pairs))
    if data.source is None:
        raise InputError("data.source: found nothing, expected preference pairs: give --data PATH or set data.source")
    if (alike := get_close_matches(data.source, KNOWN, 1)) and not Path(data.source).exists():
        raise InputError(f"data.source: found '{data.source}', did you mean the world '{alike[0]}'?")
    how: dict[str, Any] = {"limit": data.pairs, "columns": data.columns, "skip_invalid": data.skip_invalid}
    return load_preferences(data.source, rejects=folder / "rejects.jsonl", progress=True, **how)


def _written(context: Context, folder: Path, prompts: Sequence[Prompt], seed: int) -> list[str]:
    """Answers of the start model. They are stored at once, so that an interrupted run can go on."""
    path, temperature = folder / f"answers-{seed}.jsonl", context.recipe.evaluation.policy_temperature
    kept = read_metrics(path)
    write_json_lines(path, kept)  # without a last line that was cut short
    answers = [text for row in kept for text in row["answers"]]
    if len(answers) == len(prompts):
        return answers
    writer = context.start_model()
    with progress_bar(f"answers {seed}", len(prompts), done=len(answers)) as advance, path.open("a") as file:
        for start in range(len(answers), len(prompts), WRITTEN):
            own, drawn = prompts[start : start + WRITTEN], context.seed(f"answers-{seed}-{start}")
            texts = [y.text for y in writer.answer(own, temperature=temperature, seed=drawn, advance=advance)]
            file.write(json.dumps({"answers": texts}) + "\n")
            file.flush()
            answers += texts
    return answers


def _check_models(context: Context, longest: int) -> None:
    """Check before any training that the models of the recipe can be used.

    The start model must have room for the longest sequence that the lengths allow: x, y_ref, y and the template's own
    tokens. Policy, improver and both reward models must read the same token ids. The start model must have the modules
    that adapters are for.

    Raises:
        InputError: a model cannot be used.
    """
    start, base, peft = context.start, context.recipe.model.reward_base, context.recipe.peft
    tokenizer = context.tokenizer  # read first: its error names a model that does not exist
    shape = load_shape(start)
    window = window_of(shape.config)
    if window is not None and longest > window:
        raise InputError(
            f"{start}: found a window of {window} tokens, expected at least {longest}: data.max_prompt_tokens, "
            f"twice data.max_response_tokens (or max_new_tokens) and {TEMPLATE_TOKENS} for the template; lower them"
        )
    if base is not None and load_tokenizer(base).get_vocab() != tokenizer.get_vocab():
        raise InputError(f"model.reward_base: found {base}, whose vocabulary is not that of {start}, expected the same")
    if peft is None or peft.target_modules == "all-linear":
        return
    modules = dict(shape.named_modules())
    embedding = [shape.get_input_embeddings(), shape.get_output_embeddings()]
    asked = peft.target_modules  # as PEFT reads them: a pattern of whole names, or a list of endings
    wanted = {asked: asked} if isinstance(asked, str) else {end: rf"(.*\.)?{re.escape(end)}" for end in asked}
    for written, pattern in wanted.items():
        found = [module for name, module in modules.items() if re.fullmatch(pattern, name)]
        if not found:
            known = sorted({name.rpartition(".")[2] for name in modules if name.endswith(("_proj", "_fc", "_attn"))})
            raise InputError(
                f"peft.target_modules: found {written}, which no module of {start} is called, expected"
                f" all-linear, or of these: {', '.join(known)}"
            )
        if shape.config.get_text_config().tie_word_embeddings and any(module in embedding for module in found):
            raise InputError(  # PEFT trains an adapter of one of the two, and merges it into both
                f"peft.target_modules: found {written}, the embedding of {start}, which is also its head, expected"
                " modules of the layers"
            )


def _health(context: Context, folder: Path) -> dict[str, Any]:
    """The health of R_PIT on held-out pairs and on pairs of fresh answers of the policy."""
    evaluation, bases = context.recipe.evaluation, context.bases()
    prompts = unique_prompts(context.folds["test"])[: evaluation.fresh_pairs]
    temperature = evaluation.policy_temperature
    writer = context.open(Policy, context.recipe.policy_stage, bases)
    with progress_bar("fresh answers", 2 * len(prompts)) as advance:
        first, second = (
            writer.answer(prompts, temperature=temperature, seed=context.seed(f"fresh-{number}"), advance=advance)
            for number in (1, 2)
        )
    fresh = [Comparison(x, a.text, b.text) for x, a, b in zip(prompts, first, second, strict=True)]
    gap, reward = context.open(GapModel, folder.name, bases), context.open(RewardModel, "reward", bases)
    return gap_health(gap, reward, context.folds["reward"], context.folds["test"], fresh, context.judge(bases))
