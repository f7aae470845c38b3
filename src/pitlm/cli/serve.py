"""`pit serve`: a proxy in front of an OpenAI-compatible API that improves its answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

TOKEN = "PIT_SERVE_TOKEN"
MODELS_KEY = "PIT_MODELS_KEY"

EXAMPLES = f"""
\b
Examples:
  pit serve --run runs/quickstart --upstream http://127.0.0.1:8001/v1
  pit serve --improver path/to/model --gap path/to/model --upstream https://api.example.com/v1
  pit serve --improver http://127.0.0.1:8002/v1 --improver-model my-improver --gap http://127.0.0.1:8003/v1 \\\\
      --upstream https://api.example.com/v1
  pit serve --gap path/to/model --port 8003     # only scores, for others to use: /v1/score, /get_reward

Then give your client this server as its base_url. Secrets come from the environment: {TOKEN} is what clients have to
send as bearer token, {MODELS_KEY} goes to a remote improver and gap model. docs/serve.md says what is improved, what is
passed through, and what happens when something fails.
"""


@click.command(epilog=EXAMPLES)
@click.option("--upstream", help="Base URL of the API to stand in front of, as a client would have it (with its /v1).")
@click.option("--upstream-key-env", metavar="NAME", help="Variable with the upstream's key. Default: the client's own.")
@click.option("--run", "run_folder", type=click.Path(path_type=Path), help="A finished run; gives models and settings.")
@click.option("--improver", help="An improver's folder, or the URL of an OpenAI-compatible server that has it.")
@click.option("--improver-model", default="improver", show_default=True, help="A remote improver's name.")
@click.option("--improver-ask", help="The turn that a remote improver was trained with ('ask' in its pit.json).")
@click.option("--gap", help="A gap model's folder, or the URL of another `pit serve` that has it.")
@click.option("--rounds", type=click.IntRange(min=1), help="At most this many rounds. Default: the run's, or 3.")
@click.option("--proposals", type=click.IntRange(min=1), help="Proposals of each round. Default: the run's, or 1.")
@click.option(
    "--margin", type=click.FloatRange(min=0), help="The gap that a proposal has to exceed. Default: calibrated."
)
@click.option("--temperature", type=click.FloatRange(min=0), help="Of the improver. Default: the run's, or 0.4.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 finds a free one.")
@click.option(
    "--improve-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="Seconds for the improvement of one answer; then the best so far is sent.",
)
@click.option(
    "--upstream-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds of the upstream's silence before the client gets a 504.",
)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Largest batch of the models.")
@click.option("--concurrency", type=click.IntRange(min=1), default=256, show_default=True, help="Requests at once.")
@click.option("--queue", type=click.IntRange(min=0), default=256, show_default=True, help="Requests waiting; then 429.")
@click.option("--max-body", type=click.IntRange(min=1), default=16, show_default=True, help="Largest request, in MiB.")
@click.option("--access-log", is_flag=True, help="Write a line for each request: path, status, time; no more.")
@click.option("--check", is_flag=True, help="Load the models, say what would be served, and stop.")
def serve(
    host: str,
    port: int,
    check: bool,
    access_log: bool,
    run_folder: Path | None,
    upstream_key_env: str | None,
    improve_timeout: float,
    upstream_timeout: float,
    max_body: int,
    improver: str | None,
    gap: str | None,
    improver_ask: str | None,
    rounds: int | None,
    proposals: int | None,
    margin: float | None,
    temperature: float | None,
    **settings: Any,
) -> None:
    """Improve the answers of an OpenAI-compatible API on their way to the client."""
    from pitlm.core.errors import InputError

    key = _secret(upstream_key_env) if upstream_key_env else None
    token = os.environ.get(TOKEN) or None
    _check_host(host, key, token)
    if improver is not None and gap is None and run_folder is None:
        raise InputError("--improver: found no --gap beside it, expected one, which says whether a proposal is better")
    if run_folder is None and improver is None and gap is None and settings["upstream"] is None:
        raise InputError("nothing to serve; give --upstream with --run or --improver and --gap, or --gap alone")
    loop, models = _from_run(run_folder)
    models |= ({"improver": improver} if improver else {}) | ({"gap": gap, "reward": None} if gap else {})
    given = {"rounds": rounds, "proposals": proposals, "margin": margin, "temperature": temperature}
    loop |= {name: value for name, value in given.items() if value is not None}

    from pitlm.core.recipe import LoopSection
    from pitlm.serve.settings import LOOPBACK_HOSTS, Settings

    with _extra("serve"):
        from pitlm.serve.server import run
    if host not in LOOPBACK_HOSTS or token is not None:
        settings["hosts"] = None
    if improver_ask is not None:
        settings["improver_ask"] = improver_ask
    run(
        Settings(
            **settings,
            **models,
            models_key=os.environ.get(MODELS_KEY) or None,
            upstream_key=key,
            token=token,
            loop=LoopSection.of(loop),
            improve_seconds=improve_timeout,
            upstream_seconds=upstream_timeout,
            body_bytes=max_body * 2**20,
        ),
        host=host,
        port=port,
        check=check,
        access_log=access_log,
    )


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Say how to install what an import in the block does not find."""
    from pitlm.core.errors import InputError

    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'pitlm[{name}]'") from error


def _check_host(host: str, key: str | None, token: str | None) -> None:
    """Refuse to lend the upstream's key to a network; warn where the network may use the rest."""
    from pitlm.core.errors import InputError
    from pitlm.serve.settings import LOOPBACK_HOSTS

    if host in LOOPBACK_HOSTS or token is not None:
        return
    if key is not None:
        raise InputError(
            f"--host {host}: others could use the upstream's key; set {TOKEN}, which they then have to send"
        )
    click.echo(f"Warning: --host {host} lets others in, and {TOKEN} is not set: no token is asked for.", err=True)


def _secret(variable: str) -> str:
    from pitlm.core.errors import InputError

    value = os.environ.get(variable)
    if not value:
        raise InputError(
            f"--upstream-key-env: found no variable {variable}, or an empty one, expected the upstream's key"
        )
    return value


def _from_run(folder: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The loop's settings of a finished run, its models' folders and how they are held; nothing without one.

    R_P gives its second opinion beside the run's own gap model only.
    """
    if folder is None:
        return {}, {}
    with _extra("train"):
        from pitlm.run.finished import stored_recipe

    recipe = stored_recipe(folder)
    stages = {"improver": recipe.improver_stage, "gap": "gap", "reward": "reward"}
    models = {name: str(folder / stage / "model") for name, stage in stages.items()}
    return recipe.loop.model_dump(), {**models, "dtype": recipe.model.dtype, "quantize": recipe.quantize}
