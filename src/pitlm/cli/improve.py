"""`pit improve`: better versions of one answer, or of a file of answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pitlm.cli.options import check_output, check_output_folder

if TYPE_CHECKING:
    from pitlm.core.recipe import ModelChoice

EXAMPLES = """
\b
Examples:
  pit improve --run runs/quickstart --prompt "lamp : price nine color red size small . price ?" \\
      --response "silly question . price nine . well anyway ."
  pit improve answers.jsonl -o better.jsonl --run runs/quickstart
  pit improve answers.jsonl -o better.jsonl --improver path/to/model --gap path/to/model --rounds 5
  pit improve model_outputs.json -o better.jsonl --run runs/mine --engine endpoint \\
      --base-url http://localhost:8000/v1 --model my-improver
  pit improve answers/ -o better/ --run runs/mine --engine ray --workers 8

FILE is .jsonl, .json, .csv or .parquet, and may be larger than memory. A row has "prompt" (a string or chat messages)
and "response", or AlpacaEval's "instruction" and "output"; a row without a response is answered first, by the run's
policy or what --policy names. The output has the rows in their order, with their own fields and "final", "original",
"rounds" and "stop_reason".

A job that was stopped goes on when the same command is given again: what is finished is kept in OUT.partial. A row
that cannot be improved is set aside in OUT.failed.jsonl, with the reason; the others go on, and the exit code is 0
unless every row failed.

With --engine ray the work is shared by the processes of a Ray cluster: the one at RAY_ADDRESS, which has to see the
same folders, or one that is started on this machine and ends with the command. FILE may be a folder of files, and OUT
is a folder of part files, --part-rows rows each; one after the other they are what one process would have written. A
worker that is killed is replaced, and nothing is lost or done twice. docs/engines.md says more.
"""


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"found {value}, expected a finite number")
    return value


def _known_engine(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from pitlm.engines.engine import ENGINES
    from pitlm.io.parts import part_names

    names: click.Choice[str] = click.Choice([*part_names("pitlm.engines", ENGINES), "ray"])
    return names.convert(value, param, ctx)


def _check_models(models: ModelChoice) -> None:
    """Refuse options that do not go together."""
    from pitlm.core.errors import InputError

    local = models.engine != "endpoint"
    for name, value in (("--base-url", models.base_url), ("--model", models.model)):
        if local and value is not None:
            raise InputError(f"{name}: found beside --engine {models.engine}, expected beside --engine endpoint")
    if not local and models.model is None:
        raise InputError("--model: found nothing, expected the improver's name on the server")
    if not local and models.improver is not None:
        raise InputError("--improver: found beside --engine endpoint, expected --model, its name on the server")
    if not local and models.run is None and models.gap is None:
        raise InputError("give --run (a finished run) or --gap")
    if local and models.run is None and (models.improver is None or models.gap is None):
        raise InputError("give --run (a finished run), or both --improver and --gap")
    if models.policy_url is not None and models.policy_model is None:
        raise InputError("--policy-model: found nothing, expected the model's name beside --policy-url")


def _check_cluster(engine: str, file: Path | None, **given: int | None) -> None:
    """Refuse what goes with --engine ray without it, and that without a file."""
    from pitlm.core.errors import InputError

    for name, value in given.items():
        if engine != "ray" and value is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: found beside --engine {engine}, expected beside --engine ray")
    if engine == "ray" and file is None:
        raise InputError("--engine ray: found beside --prompt, expected beside FILE")


def _check_prompt(prompt: str | None, response: str | None) -> None:
    from pitlm.core.errors import InputError
    from pitlm.data.prompt_fields import is_unicode

    for name, text in (("--prompt", prompt), ("--response", response)):
        if text is not None and not is_unicode(text):
            raise InputError(f"{name}: found bytes that are not UTF-8, expected text")
    if prompt is not None and not prompt.strip():
        raise InputError("--prompt: found nothing, expected the question that was answered")


@click.command(epilog=EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the improved answers go (JSON lines).")
@click.option("--run", type=click.Path(path_type=Path), help="A finished run; gives models and settings.")
@click.option("--improver", type=click.Path(path_type=Path), help="An improver's folder, instead of the run's.")
@click.option("--gap", type=click.Path(path_type=Path), help="A gap model's folder, instead of the run's.")
@click.option(
    "--policy", type=click.Path(path_type=Path), help="The folder of what answers rows without response: not the run's."
)
@click.option("--policy-url", metavar="URL", help="An OpenAI-compatible server that answers rows without response.")
@click.option("--policy-model", metavar="NAME", help="The model to ask there.")
@click.option(
    "--engine",
    metavar="NAME",
    callback=_known_engine,
    default="transformers",
    show_default=True,
    help="What runs the improver: transformers (this process), vllm (extra 'vllm'), endpoint (a server), ray (a Ray "
    "cluster, extra 'ray'), or an engine of another package.",
)
@click.option("--base-url", metavar="URL", help="The OpenAI-compatible server of --engine endpoint.")
@click.option("--model", metavar="NAME", help="The improver's name there.")
@click.option(
    "--tokens-per-batch",
    type=click.IntRange(min=1),
    help="Tokens that are in flight at once, prompts included; more is faster and takes more memory. Default: 16384.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes of --engine ray, with the models in each. Default: one a GPU, or else one a CPU core.",
)
@click.option(
    "--part-rows",
    type=click.IntRange(min=1),
    help="Rows that a worker of --engine ray takes at once. Default: 1000; with more, vLLM is kept fuller.",
)
@click.option("--prompt", help="One prompt, instead of a file.")
@click.option("--response", help="The answer to improve, beside --prompt.")
@click.option("--rounds", type=click.IntRange(min=1), help="At most this many rounds. Default: the run's, or 3.")
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    callback=_finite,
    help="The gap that a proposal has to exceed to replace the answer. Default: the run's, or 0.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    callback=_finite,
    help="Of the improver; 0 is greedy. Default: the run's, or 0.4.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**31 - 1),
    default=0,
    show_default=True,
    help="Of the sampling; same seed, same answers.",
)
@click.option("--force", is_flag=True, help="Replace the output file, and begin anew what was stopped.")
def improve(
    file: Path | None,
    output: Path | None,
    prompt: str | None,
    response: str | None,
    rounds: int | None,
    margin: float | None,
    temperature: float | None,
    seed: int,
    force: bool,
    workers: int | None,
    part_rows: int | None,
    **models: Any,
) -> None:
    """Improve one answer, or each answer of FILE, and say why each loop stopped."""
    from pitlm.core.errors import InputError
    from pitlm.core.recipe import ModelChoice

    if (file is None) == (prompt is None):
        raise InputError("give either a FILE of answers or --prompt (with --response)")
    if file is not None and response is not None:
        raise InputError("--response: found beside FILE, expected beside --prompt")
    _check_prompt(prompt, response)
    if file is not None and output is None:
        raise InputError("-o: found nothing, expected the file that the improved answers go to")
    if file is None and output is not None:
        raise InputError("-o: found beside --prompt, expected beside FILE")
    chosen = ModelChoice(**models)
    if output is not None and chosen.engine == "ray":
        check_output_folder(output, force, "the improved answers", "part-*.jsonl")
    elif output is not None:
        check_output(output, force, "the improved answers")
    _check_models(chosen)
    _check_cluster(chosen.engine, file, workers=workers, part_rows=part_rows)

    from pitlm.batch.improve_file import improve_file, improve_one

    settings = {"rounds": rounds, "margin": margin, "temperature": temperature}
    if file is not None and output is not None and chosen.engine == "ray":
        from pitlm.batch.cluster import improve_parts

        part_rows = part_rows or 1000
        improve_parts(file, output, chosen, settings, seed=seed, workers=workers, part_rows=part_rows, force=force)
    elif file is not None and output is not None:
        improve_file(file, output, chosen, settings, seed=seed, force=force)
    else:
        improve_one(prompt or "", response, chosen, settings, seed=seed)
