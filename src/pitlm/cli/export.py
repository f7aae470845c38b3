"""`pit export`: a trained model for other engines, here or on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

EXAMPLES = """
\b
Examples:
  pit export runs/mine -o improver/
  pit export runs/mine --model gap -o gap/ --dtype bfloat16
  pit export runs/mine/rl-0-data -o earlier/
  pit export runs/mine -o adapter/ --adapter
  pit export runs/mine --push-to-hub OWNER/NAME --private

vllm serve improver/ then improves for any OpenAI client, which sends a conversation that ends with the response to
improve, as the assistant's turn.
"""


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--model",
    "kind",
    type=click.Choice(["improver", "policy", "gap", "reward"]),
    help="Which model of a run. Default: improver.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights. Default: as they are saved."
)
@click.option("--adapter", is_flag=True, help="Write the adapter over the run's base, not merged weights.")
@click.option("--push-to-hub", "hub", metavar="OWNER/NAME", help="Upload it to the Hugging Face hub (HF_TOKEN).")
@click.option("--private", is_flag=True, help="Let nobody else see it there, if it is new.")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
def export(source: Path, output: Path | None, hub: str | None, force: bool, **options: Any) -> None:
    """Write a trained model as one folder that other engines load, with a model card.

    SOURCE is the folder of a run, of one of its stages, or of a model. Adapters are merged; the chat template is
    written so that servers need no arguments; the card has the data, the recipe, the results with intervals and the
    health of R_PIT.
    """
    from pitlm.core.errors import InputError

    kind, dtype, adapter = options["kind"], options["dtype"], options["adapter"]
    if output is None and hub is None:
        raise InputError("found neither -o nor --push-to-hub, expected where to: -o FOLDER")
    if options["private"] and hub is None:
        raise InputError("--private: found no --push-to-hub, expected it")
    if adapter and dtype:
        raise InputError("--dtype: found --adapter beside it, expected one of them: an adapter is written as it is")
    if output is not None:
        _check(output, force)

    from pitlm.jobs.exporting import check_apart, check_hub, export_to, find_source

    found = find_source(source, kind)
    if output is not None:
        check_apart(found, output)
    if hub is not None:
        check_hub(hub, found, adapter=adapter)
    url = export_to(found, output, hub=hub, private=options["private"], dtype=dtype, adapter=adapter)
    for place in filter(None, (output, url)):
        click.echo(f"{found.card.kind} of {source}: {place}")


def _check(output: Path, force: bool) -> None:
    """Refuse to replace what is no earlier export.

    Raises:
        InputError: a file, or a folder with something in it.
    """
    from pitlm.cli.outputs import check_place
    from pitlm.core.errors import InputError

    if output.exists() and not output.is_dir():
        raise InputError.at(output, found="a file", expected="the folder to write")
    if output.is_dir() and any(output.iterdir()):
        if not (output / "pit.json").is_file():
            raise InputError.at(output, found="a folder with other files in it", expected="an empty one, or none")
        check_place(output, force)
    elif not output.exists():
        check_place(output, force)
