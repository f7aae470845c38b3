"""The options that say which judge, and how it is asked: the same for every verb that judges."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pitlm.io.parts import part_names
from pitlm.judge.protocol import GROUP


def _body(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any]:
    try:
        body = json.loads(value or "{}")
    except ValueError as error:
        raise click.BadParameter(f"found {value!r} ({error}), expected a JSON object") from error
    if not isinstance(body, dict):
        raise click.BadParameter(f"found {value!r}, expected a JSON object")
    return body


KINDS = {"llm": "llm", "reward": "foreign", "oracle": "truth", "scripted": "scripted"}
"""What `--judge` calls the kinds of judges, and what a recipe calls them."""
WHO = "A language model, a reward or gap model, the pocket world's truth, or replies from a file."
HOW = [
    click.option(
        "--model", help="llm: its name; reward: folder or hub name; scripted: JSON lines, two replies a pair."
    ),
    click.option("--base-url", help="Of any OpenAI-compatible endpoint.  [default: OPENAI_BASE_URL]"),
    click.option("--template", type=click.Path(path_type=Path), help="The judge's prompt, instead of ours."),
    click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Of the judge."),
    click.option(
        "--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Longest reply of the judge."
    ),
    click.option("--judge-seed", type=int, help="Sent along, for servers that heed it."),
    click.option(
        "--body",
        callback=_body,
        metavar="JSON",
        help="Further fields of each request; null removes one, as for models without a temperature: "
        """'{"temperature": null, "max_tokens": null, "max_completion_tokens": 4096}'.""",
    ),
    click.option(
        "--price", help="Of a million tokens: input,cached,output; or a JSON file {model: [in, cached, out]}."
    ),
    click.option(
        "--max-cost",
        type=click.FloatRange(min=0, min_open=True),
        help="Start no call once this command has spent so much; calls under way are kept.",
    ),
    click.option(
        "--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Calls at the same time."
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=120.0,
        show_default=True,
        help="Seconds that the server may be silent.",
    ),
    click.option(
        "--cache", type=click.Path(path_type=Path), help="Where replies are kept.  [default: beside the output]"
    ),
    click.option(
        "--retry-unparsable",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Ask again, at most N times, where a reply holds no verdict.",
    ),
]


def judge_options(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command these options, as one argument ``options``: a :class:`pitlm.core.recipe.JudgeSection`.

    Args:
        required: where it is not, and no judge is named, ``options`` is None.
    """
    options = [
        click.option("--judge", "kind", type=click.Choice(part_names(GROUP, KINDS)), required=required, help=WHO),
        *HOW,
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_options(**given: Any) -> Any:
            from pitlm.core.recipe import JudgeSection
            from pitlm.judge.judges import check_section

            own = {name: given.pop("judge_seed" if name == "seed" else name) for name in JudgeSection.model_fields}
            if own["kind"] is None:
                return command(options=None, **given)
            section = JudgeSection(**{**own, "kind": KINDS.get(own["kind"], own["kind"])})
            check_section(section, f"--judge {own['kind']}", lambda field: f"--{field.replace('_', '-')}")
            return command(options=section, **given)

        return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), with_options)

    return decorate
