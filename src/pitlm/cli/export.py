"""`pit export`: writes a trained model for any engine, with its card.

\b
Examples:
  pit export runs/mine -o improver
  pit export runs/mine --model gap -o gap-model
  pit export runs/mine -o improver --dtype bfloat16 --push-to-hub me/my-improver --private
  pit export runs/mine --adapter -o adapter        # for vllm serve BASE --enable-lora
  pit export runs/mine/improver-sft -o sft-only

SOURCE is the folder of a run (then --model says which model), of one of its stages, or of a model. `vllm serve` of an
exported improver, or another OpenAI-compatible server, improves the last answer of a conversation: the turn that the
improver was trained with is in its chat template. docs/export.md says more.
"""

from pathlib import Path
from typing import Any

import click

from pitlm.cli import examples
from pitlm.cli.options import PATH
from pitlm.core.errors import InputError

MODELS = ["improver", "policy", "gap", "reward"]
DTYPES = ["float32", "bfloat16", "float16"]


@click.command(epilog=examples(__doc__))
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, help="Folder to write the model to.")
@click.option("--model", type=click.Choice(MODELS), help="Which model of a run. Default: the improver.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Dtype of the weights. Default: unchanged.")
@click.option("--adapter", is_flag=True, help="Write the LoRA adapter over the base of the run, not whole weights.")
@click.option("--force", "replace", is_flag=True, help="Replace an earlier export.")
@click.option(
    "--push-to-hub",
    "repository",
    metavar="NAME",
    help="Upload the model to the hub under this name; works with and without -o.",
)
@click.option("--private", is_flag=True, help="Make a repository that --push-to-hub creates private.")
def export(source: Path, model: Any, output: Path | None, **how: Any) -> None:
    """Write a trained model as a checkpoint of Hugging Face's format, with a model card."""
    if output is None and how["repository"] is None:
        raise InputError("give -o (a folder), or --push-to-hub (a name), or both")
    if how["private"] and how["repository"] is None:
        raise InputError("--private: found without --push-to-hub, expected beside it")
    if how["adapter"] and how["dtype"] is not None:
        raise InputError("--dtype: found beside --adapter, expected beside whole weights")

    from pitlm.run.export import Source, deliver

    for line in deliver(Source.of(source, model), output, **how):
        click.echo(line)
