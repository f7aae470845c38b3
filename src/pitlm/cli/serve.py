"""`pit serve`: a proxy in front of an OpenAI-compatible API that improves its answers.

\b
Examples:
  pit serve --run runs/quickstart --upstream http://127.0.0.1:8001/v1
  pit serve --improver path/to/model --gap path/to/model --upstream https://api.example.com/v1
  pit serve --improver http://127.0.0.1:8002/v1 --improver-model my-improver --gap http://127.0.0.1:8003/v1 \\
      --upstream https://api.example.com/v1
  pit serve --gap path/to/model --port 8003     # only scores, for others to use: /v1/score, /get_reward

Then give your client the address of this server as its base_url. Secrets come from the environment. If PIT_SERVE_TOKEN
is set, clients have to send its value as a bearer token; an upstream then also needs --upstream-key-env. The proxy
sends PIT_MODELS_KEY to a remote improver and to a remote gap model.
docs/serve.md says which answers are improved, which are passed through, and what happens when something fails.
"""

import os
from pathlib import Path
from typing import Any

import click

from pitlm.cli.options import section_options
from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.io.visible import echo
from pitlm.serve.settings import LOOPBACK_HOSTS, Settings

TOKEN = "PIT_SERVE_TOKEN"
MODELS_KEY = "PIT_MODELS_KEY"


@click.command()
@section_options(
    Settings,
    *("upstream", "improver", "improver_model", "improver_ask", "gap", "improve_seconds", "upstream_seconds"),
    *("batch", "concurrency", "queue", "max_body"),
    into="settings",
    names={"improve_seconds": "improve_timeout", "upstream_seconds": "upstream_timeout"},
)
@click.option("--upstream-key-env", metavar="NAME", help="Variable with the upstream's key. Default: the client's key.")
@click.option("--run", "run_folder", type=click.Path(path_type=Path), help="Use the models and settings of this run.")
@section_options(LoopSection, "rounds", "proposals", "margin", "temperature", into="loop", of_run=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port.")
@click.option("--access-log", is_flag=True, help="Log each request's path, status and time, and nothing else.")
@click.option("--check", is_flag=True, help="Load the models, say what would be served, and stop.")
def serve(
    settings: Settings, loop: LoopSection, upstream_key_env: str | None, run_folder: Path | None, host: str, **how: Any
) -> None:
    """Improve the answers of an OpenAI-compatible API on their way to the client."""
    key, token = (os.environ.get(name or "", "").strip() or None for name in (upstream_key_env, TOKEN))
    if upstream_key_env and key is None:
        raise InputError(f"--upstream-key-env: found {upstream_key_env} empty or not set, expected the upstream's key")
    local = host in LOOPBACK_HOSTS
    if not local and token is None:
        if key is not None:
            wanted = f"set {TOKEN}, which they have to send"
            raise InputError(f"--host {host}: others could use the upstream's key; {wanted}")
        echo(f"Warning: --host {host} lets others in, and {TOKEN} is not set: no token is asked for.", err=True)
    if settings.improver is not None and settings.gap is None and run_folder is None:
        raise InputError("--improver: found no --gap beside it, expected one, which says whether a proposal is better")
    if not (run_folder or settings.improver or settings.gap or settings.upstream):
        raise InputError("nothing to serve; give --upstream with --run or --improver and --gap, or --gap alone")
    if run_folder is not None:
        settings, loop = _of_run(run_folder, settings, loop)

    from pitlm.serve.app import run

    secrets = {"upstream_key": key, "token": token, "models_key": os.environ.get(MODELS_KEY) or None}
    hosts = settings.hosts if local and token is None else None
    run(settings.model_copy(update={**secrets, "hosts": hosts, "loop": loop}), host=host, **how)


def _of_run(folder: Path, settings: Settings, loop: LoopSection) -> tuple[Settings, LoopSection]:
    """Fill in models and settings of the loop that the command does not give, from a finished run.

    Dtype and quantization of the models also come from the run. R_P gives its second opinion only on the run's own gap
    model.
    """
    from pitlm.run.folder import stored_recipe

    recipe = stored_recipe(folder)
    improver, gap, reward = (str(folder / stage / "model") for stage in (recipe.improver_stage, "gap", "reward"))
    models = {"improver": settings.improver or improver, "gap": settings.gap or gap}
    held = {"reward": None if settings.gap else reward, "dtype": recipe.model.dtype, "quantize": recipe.quantize}
    return settings.model_copy(update={**models, **held}), loop.over(recipe.loop)
