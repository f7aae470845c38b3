"""`pit export`: writes a trained model for any engine, with its card.

\b
Examples:
  pit export runs/mine -o improver
  pit export runs/mine --model gap -o gap-model
  pit export runs/mine -o improver --dtype bfloat16 --push-to-hub me/my-improver --private
  pit export runs/mine --adapter -o adapter        # for vllm serve BASE --enable-lora
  pit export runs/mine/improver-sft -o sft-only

SOURCE is the folder of a run, of a stage, or of a model. For the folder of a run, --model says which model to export.
`vllm serve`, or another OpenAI-compatible server, can run the exported improver, which then improves the last answer of
a conversation. The request for a better answer is part of the exported chat template. See docs/export.md.
"""

from pathlib import Path
from typing import Literal

import click

from pitlm.cli.options import PATH, section_options
from pitlm.core.errors import InputError
from pitlm.core.section import Section
from pitlm.io.visible import echo


class ExportOptions(Section):
    """Which model is exported, and how.

    Attributes:
        model: which model of a run to export. Default: the improver.
        dtype: dtype of the weights. Default: unchanged.
        adapter: write the LoRA adapter over the run's base model, not whole weights.
        replace: replace an earlier export.
        repository: upload the model to the hub under this name; works with and without -o.
        private: with --push-to-hub: create the repository as a private one.
    """

    model: Literal["improver", "policy", "gap", "reward"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    adapter: bool = False
    replace: bool = False
    repository: str | None = None
    private: bool = False


@click.command()
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, help="Folder to write the model to.")
@section_options(ExportOptions, into="how", names={"replace": "force", "repository": "push_to_hub"})
def export(source: Path, output: Path | None, how: ExportOptions) -> None:
    """Write a trained model as a checkpoint in Hugging Face's format, with a model card."""
    if output is None and how.repository is None:
        raise InputError("give -o (a folder), or --push-to-hub (a name), or both")
    if how.private and how.repository is None:
        raise InputError("--private: found without --push-to-hub, expected beside it")
    if how.adapter and how.dtype is not None:
        raise InputError("--dtype: found beside --adapter, expected beside whole weights")

    from pitlm.run.export import Source, deliver

    for line in deliver(Source.of(source, how.model), output, **how.model_dump(exclude={"model"})):
        echo(line)
