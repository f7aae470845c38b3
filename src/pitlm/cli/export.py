"""`pit export`: a trained model, for any engine, with its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pitlm.jobs.exporting import Source

EXAMPLES = """
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


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder that the model goes to.")
@click.option(
    "--model",
    type=click.Choice(["improver", "policy", "gap", "reward"]),
    help="Which model of a run. Default: the improver.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights. Default: as they are."
)
@click.option("--adapter", is_flag=True, help="The LoRA adapter over the base of the run, not whole weights.")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.option("--push-to-hub", "repository", metavar="NAME", help="Also, or only, upload it under this name.")
@click.option("--private", is_flag=True, help="Where --push-to-hub makes a repository, make it private.")
def export(
    source: Path,
    output: Path | None,
    model: Any,
    dtype: str | None,
    adapter: bool,
    force: bool,
    repository: str | None,
    private: bool,
) -> None:
    """Write a trained model as a checkpoint of Hugging Face's format, with a model card."""
    from pitlm.core.errors import InputError

    if output is None and repository is None:
        raise InputError("give -o (a folder), or --push-to-hub (a name), or both")
    if private and repository is None:
        raise InputError("--private: found without --push-to-hub, expected beside it")
    if adapter and dtype is not None:
        raise InputError("--dtype: found beside --adapter, expected beside whole weights")

    from pitlm.jobs.exporting import Source

    found = Source.of(source, model)
    if output is not None:
        found.check_output(output, replace=force)
    if adapter:
        found.check_adapter(on_hub=repository is not None)
    _export(found, output, repository, private, {"dtype": dtype, "adapter": adapter})


def _export(source: Source, output: Path | None, repository: str | None, private: bool, how: dict[str, Any]) -> None:
    from tempfile import TemporaryDirectory

    from pitlm.core.errors import InputError
    from pitlm.jobs.exporting import export
    from pitlm.jobs.hub import open_repository, upload
    from pitlm.runs.atomic import atomic_folder

    if repository is not None:
        repository = open_repository(repository, private=private)
    if output is None:
        assert repository is not None
        with TemporaryDirectory() as folder:
            export(source, Path(folder), name=repository, on_hub=True, **how)
            click.echo(f"Pushed {source.card.kind}: {upload(Path(folder), repository)}")
        return
    place = output.resolve()
    with atomic_folder(place) as folder:
        export(source, folder, name=repository or place.name, on_hub=repository is not None, **how)
    click.echo(f"Exported {source.card.kind}: {output}")
    if repository is not None:
        try:
            click.echo(f"Pushed: {upload(output, repository)}")
        except InputError as error:
            raise InputError(f"{error}. The export is in {output}") from error
