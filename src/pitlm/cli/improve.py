"""`pit improve`: better versions of one answer, or of a file of answers.

\b
Examples:
  pit improve --run runs/quickstart --prompt "lamp : price nine color red size small . price ?" \\
      --response "silly question . price nine . well anyway ."
  pit improve answers.jsonl -o better.jsonl --run runs/quickstart
  pit improve answers.jsonl -o better.jsonl --improver path/to/model --gap path/to/model --rounds 5
  pit improve model_outputs.json -o better.jsonl --run runs/mine --engine endpoint \\
      --base-url http://localhost:8000/v1 --model my-improver
  pit improve answers/ -o better/ --run runs/mine --engine ray --workers 8

FILE is .jsonl, .csv or .parquet of any size, or .json up to 256 MiB. A row has "prompt" (a string or chat messages)
and "response", or AlpacaEval's "instruction" and "output". If a row has no response, the run's policy answers first, or
the model of --policy or --policy-url. The output keeps the rows, their order and their fields, and adds the field
"pit", an object with "final", "original", "rounds" and "stop_reason". In such a file the loop starts from "final".

If a job is interrupted, give the same command again: with -o better.jsonl, better.jsonl.partial keeps the finished
rows. Rows that cannot be improved go to better.failed.jsonl with the reason, and the job goes on. The exit code is 0
unless every row failed.

With --engine ray the processes of a Ray cluster share the work. RAY_ADDRESS names the cluster, which has to see the
same folders. Without RAY_ADDRESS the command starts a cluster on this machine, and stops it at the end. FILE may be a
folder of files. The output is a folder of part files with --part-rows rows each. Joined, the part files equal the file
that one process would write. A worker that dies is replaced, and no row is lost or written twice. See docs/engines.md.
"""

from pathlib import Path

import click
from pydantic import Field, SkipValidation

from pitlm.batch.model_choice import ModelChoice
from pitlm.cli.options import PATH, check_output, section_options
from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.section import Section


class ImproveOptions(Section):
    """What is improved beside a file, and how.

    Attributes:
        prompt: one prompt, instead of a file.
        response: the answer to improve, beside --prompt.
        seed: seed of the sampling: the same seed gives the same answers.
        force: replace the output file, and begin an interrupted job anew.
    """

    prompt: SkipValidation[str | None] = None  # ModelChoice.check has words for half a character
    response: SkipValidation[str | None] = None
    seed: int = Field(0, ge=0, lt=2**31)
    force: bool = False


@click.command()
@click.argument("file", type=PATH, required=False)
@click.option("-o", "--output", type=PATH, help="File for the improved answers (JSON lines), or a folder with ray.")
@section_options(ModelChoice, into="models")
@section_options(LoopSection, "rounds", "margin", "temperature", into="loop", of_run=True)
@section_options(ImproveOptions, into="asked")
def improve(
    file: Path | None, output: Path | None, models: ModelChoice, loop: LoopSection, asked: ImproveOptions
) -> None:
    """Improve one answer, or each answer of FILE, and say why each loop stopped."""
    prompt, response, force = asked.prompt, asked.response, asked.force
    if (file is None) == (prompt is None):
        raise InputError("give either a FILE of answers or --prompt (with --response)")
    if file is not None and response is not None:
        raise InputError("--response: found beside FILE, expected beside --prompt")
    if file is not None and output is None:
        raise InputError("-o: found nothing, expected the file that the improved answers go to")
    if file is None and output is not None:
        raise InputError("-o: found beside --prompt, expected beside FILE")
    models.check(prompt, response)
    if output is not None:
        check_output(output, force, "the improved answers", "part-*.jsonl" if models.engine == "ray" else None)

    from pitlm.batch.finished_rows import failed_path
    from pitlm.batch.improve_file import Setup, improve_file, improve_one
    from pitlm.data.items import read_items

    if file is not None and output is not None and failed_path(output).resolve() == file.resolve():
        raise InputError(f"{file}: found the file that failed rows go to, expected another -o")
    if output is not None and not output.with_name(f"{output.name}.partial").exists():  # else a job goes on
        check_output(failed_path(output), force, "the rows that fail")
    if file is not None:
        next(read_items(file))  # a fault of the whole file shows before anything starts
    setup = Setup(models, loop, asked.seed)
    if file is None or output is None:
        improve_one(prompt or "", response, setup)
    elif models.engine == "ray":
        from pitlm.batch.cluster import improve_parts

        improve_parts(file, output, setup, force=force)
    else:
        improve_file(file, output, setup, force=force)
