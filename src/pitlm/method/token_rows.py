"""Preferences to the token rows that each training stage reads."""

from __future__ import annotations

from collections.abc import Sequence

from pitlm.core.nouns import Preference
from pitlm.data.template import Template, Tokenizer, encode_completion, encode_prompts
from pitlm.method.common import TokenRow
from pitlm.method.reward import GapRow, PairRow


def policy_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[TokenRow]:
    """(x, y_w)."""
    prompts = encode_prompts(tokenizer, [template.policy_messages(pair.prompt) for pair in pairs])
    return [(ids, encode_completion(tokenizer, pair.chosen)) for ids, pair in zip(prompts, pairs, strict=True)]


def improver_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[TokenRow]:
    """(x with y_l as the reference, y_w)."""
    prompts = encode_prompts(tokenizer, [template.improver_messages(pair.prompt, pair.rejected) for pair in pairs])
    return [(ids, encode_completion(tokenizer, pair.chosen)) for ids, pair in zip(prompts, pairs, strict=True)]


def reward_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[PairRow]:
    """(x, y_w) beside (x, y_l)."""
    prompts = encode_prompts(tokenizer, [template.policy_messages(pair.prompt) for pair in pairs])
    return [
        PairRow(ids + encode_completion(tokenizer, pair.chosen), ids + encode_completion(tokenizer, pair.rejected))
        for ids, pair in zip(prompts, pairs, strict=True)
    ]


def gap_rows(pairs: Sequence[Preference], tokenizer: Tokenizer, template: Template) -> list[GapRow]:
    """The four rows of Eq. 2, each exactly the improver's prompt and completion."""
    beside_w = encode_prompts(tokenizer, [template.improver_messages(pair.prompt, pair.chosen) for pair in pairs])
    beside_l = encode_prompts(tokenizer, [template.improver_messages(pair.prompt, pair.rejected) for pair in pairs])
    rows = []
    for pair, at_w, at_l in zip(pairs, beside_w, beside_l, strict=True):
        w, l = encode_completion(tokenizer, pair.chosen), encode_completion(tokenizer, pair.rejected)
        rows.append(GapRow(wl=at_l + w, ww=at_w + w, ll=at_l + l, lw=at_w + l))
    return rows
