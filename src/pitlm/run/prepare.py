"""The first stage: read pairs, fit them to the lengths, cut them into folds; make a start model if none is given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.nouns import Preference
from pitlm.core.recipe import Recipe
from pitlm.data.dataset import Loaded, load_preferences
from pitlm.data.folds import cut_folds, write_folds
from pitlm.data.lengths import fit_preferences
from pitlm.models.loading import load_shape, load_tokenizer, load_window
from pitlm.models.scratch import make_from_scratch
from pitlm.run.context import Context
from pitlm.worlds import pocket as world

TEMPLATE_TOKENS = 48
"""Tokens allowed for the marks of the chat template and for the request, beside x, y_ref and y."""


def prepare(context: Context, folder: Path) -> dict[str, Any]:
    """Write the folds, and ``base`` (tokenizer and model) if the recipe starts from scratch."""
    recipe = context.recipe
    data = recipe.data
    loaded = _load(context, folder)
    if recipe.model.init is not None:
        raw = cut_folds(loaded.preferences, test=data.test, validation=data.validation)
        _make_base(context, folder / "base", [pair for name in ("sft", "reward", "rl") for pair in raw[name]])
    tokenizer = load_tokenizer(context.start)
    _check_window(context)
    _check_reward_base(context)
    _check_target_modules(context)
    fitted, trimmed = fit_preferences(loaded.preferences, tokenizer, context.template, data)
    if not fitted:
        raise InputError(
            f"{data.source}: found no pair within {data.max_prompt_tokens} prompt tokens and "
            f"{data.max_response_tokens} response tokens, expected some; raise data.max_prompt_tokens or "
            "data.max_response_tokens"
        )
    # Cut after trimming: prompts that differ only in what was trimmed are one prompt, and belong in one fold.
    folds = cut_folds(fitted, test=data.test, validation=data.validation)
    summary = write_folds(folder, folds, loaded)
    return {**summary, "over_long": {"dropped": len(loaded.preferences) - len(fitted), "trimmed": trimmed}}


def _longest(recipe: Recipe) -> int:
    """Tokens of the longest sequence that a model of the run may see: x, y_ref, y and the template's own."""
    data = recipe.data
    response = max(data.max_response_tokens, data.max_new_tokens or 0)
    return data.max_prompt_tokens + 2 * response + TEMPLATE_TOKENS


def _check_window(context: Context) -> None:
    """Check before any training that all sequences within the limits fit the start model."""
    longest, window = _longest(context.recipe), load_window(context.start)
    if window is not None and longest > window:
        raise InputError(
            f"{context.start}: found a window of {window} tokens, expected at least {longest}: data.max_prompt_tokens, "
            f"twice data.max_response_tokens (or max_new_tokens) and {TEMPLATE_TOKENS} for the template; lower them"
        )


def _check_reward_base(context: Context) -> None:
    """Check that policy, improver and both reward models read the same token ids."""
    base = context.recipe.model.reward_base
    if base is not None and load_tokenizer(base).get_vocab() != context.tokenizer.get_vocab():
        raise InputError(
            f"model.reward_base: found {base}, whose vocabulary is not that of {context.start}, expected the same"
        )


def _check_target_modules(context: Context) -> None:
    """Check that the model has the modules that adapters are for; otherwise the first training would stop."""
    peft = context.recipe.peft
    if peft is None or peft.target_modules == "all-linear":
        return
    names = [name for name, _ in load_shape(context.start).named_modules()]
    asked = peft.target_modules  # as PEFT reads them: a pattern of whole names, or a list of what they end with
    wanted = {asked: asked} if isinstance(asked, str) else {end: rf"(.*\.)?{re.escape(end)}" for end in asked}
    for written, pattern in wanted.items():
        if not any(re.fullmatch(pattern, name) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names if name.endswith(("_proj", "_fc", "_attn"))})
            raise InputError(
                f"peft.target_modules: found {written}, which no module of {context.start} is called, expected"
                f" all-linear, or of these: {', '.join(known)}"
            )


def _make_base(context: Context, folder: Path, training: list[Preference]) -> None:
    recipe = context.recipe
    assert recipe.model.init is not None
    make_from_scratch(
        recipe.model.init,
        _texts(training),
        folder,
        seed=context.seed("base"),
        max_tokens=_longest(recipe),
        words=[*world.vocabulary(), *recipe.template.ask.split()] if context.pocket else (),
    )


def _load(context: Context, folder: Path) -> Loaded:
    data = context.recipe.data
    if context.pocket:
        pairs = world.make_preferences(data.pairs or 24_000, context.recipe.seed)
        return Loaded(preferences=pairs, read=len(pairs), dropped={}, invalid=0)
    if data.source is None:
        raise InputError("data.source: found nothing, expected preference pairs: give --data PATH or set data.source")
    return load_preferences(
        data.source, skip_invalid=data.skip_invalid, rejects=folder / "rejects.jsonl", limit=data.pairs, progress=True
    )


def _texts(pairs: list[Preference]) -> list[str]:
    return [text for pair in pairs for text in (*(m.content for m in pair.prompt.messages), pair.chosen, pair.rejected)]
