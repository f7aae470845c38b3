"""`pit data`: look at preference pairs, and cut them into the folds of a run."""

import math
from contextlib import suppress
from pathlib import Path

import click

from pitlm.cli.options import check_output, columns_option, figures_options, section_options, write_figures
from pitlm.core.errors import InputError
from pitlm.core.section import NonNegativeInt, Section
from pitlm.io.visible import echo

_SHOWN_CHARACTERS = 300
_REJECTS = "rejects.jsonl"


def size(value: str | float) -> float:
    """Read a share (with a decimal point) or a whole number of pairs."""
    with suppress(ValueError):
        if math.isfinite(number := float(value)):
            return int(value) if str(value).strip().isdecimal() else number
    raise click.BadParameter(f"found {value!r}, expected a share such as 0.1 or a number of pairs such as 500")


class InspectOptions(Section):
    """What is shown of a source.

    Attributes:
        samples: how many pairs to print.
        skip_invalid: count invalid rows and go on, instead of stopping at the first.
        floor: also train a bag of words and show how many held-out pairs it gets right.
    """

    samples: NonNegativeInt = 3
    skip_invalid: bool = False
    floor: bool = False


class PrepareOptions(Section):
    """How a source is cut into folds.

    Attributes:
        out: folder to write the folds to.
        test: pairs to hold out for the evaluation.
        validation: pairs to hold out for choices during training.
        skip_invalid: put invalid rows into rejects.jsonl, and go on.
        force: replace the folds in a folder that is not empty.
    """

    out: Path
    test: int | float = 0.1
    validation: int | float = 0.05
    skip_invalid: bool = False
    force: bool = False


@click.group()
def data() -> None:
    """Look at preference pairs, and cut them into folds.

    SOURCE is a .jsonl, .json or .csv file (also gzipped), a .parquet file, a folder of such files, a folder that
    save_to_disk wrote, or the name of a data set on the hub (org/name or org/name:split).

    Most data sets have rows with the fields "chosen" and "rejected". They hold either two answers to a third field,
    "prompt" or "instruction", or two whole conversations. Each field is a text, a list of chat messages, or a
    Human/Assistant transcript. Rows may also have two answers and the name of the better one (SafeRLHF, SHP, Chatbot
    Arena), ranked answers (Nectar, UltraFeedback), or one answer with a thumb up or down (KTO). --columns names columns
    of other names.
    """


@data.command()
@click.argument("source")
@columns_option
@section_options(InspectOptions, into="how")
@figures_options
def inspect(
    source: str, columns: dict[str, str] | None, how: InspectOptions, json_file: Path | None, force: bool
) -> None:
    """Show what SOURCE holds: counts, lengths, length bias, samples.

    The samples are printed unchanged, and preference data can be offensive. Use --samples 0 to print no samples.

    \b
    Examples:
      pit data inspect pairs.jsonl
      pit data inspect folder/of/parquet --samples 5
      pit data inspect pairs.csv --skip-invalid --json figures.json
      pit data inspect pairs.jsonl --floor --samples 0
      pit data inspect pairs.csv --columns prompt=question,chosen=best,rejected=worst
    """
    from rich.text import Text

    from pitlm.data.dataset import load_preferences, reading
    from pitlm.data.inspection import inspect_preferences, pick_samples
    from pitlm.io.console import make_console
    from pitlm.io.templates import template

    check_output(json_file, force, "the figures")
    loaded = load_preferences(source, skip_invalid=how.skip_invalid, columns=columns, progress=True)
    figures = inspect_preferences(loaded)
    if how.floor:
        from pitlm.evaluate.floor import floor_share

        figures["floor"] = floor_share(loaded.preferences)
    echo(reading(**loaded.counts()))
    echo(template("pitlm.cli", "inspect.j2").render(found=figures, floor=figures.get("floor")), nl=False)
    console = make_console()
    for number, pair in enumerate(pick_samples(loaded.preferences, how.samples), start=1):
        console.print()
        console.print(Text(f"Sample {number}", style="bold"))
        turns = len(pair.prompt.messages)
        prompt = f"prompt (last of {turns} turns)" if turns > 1 else "prompt"
        for name, text in ((prompt, pair.prompt.text), ("chosen", pair.chosen), ("rejected", pair.rejected)):
            clipped = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
            console.print(Text.assemble((f"{name}: ", "cyan"), clipped))  # no markup: brackets belong to the data
    write_figures(json_file, figures)


@data.command()
@click.argument("source")
@columns_option
@section_options(PrepareOptions, into="how", types={"test": size, "validation": size})
def prepare(source: str, columns: dict[str, str] | None, how: PrepareOptions) -> None:
    """Cut SOURCE into the folds sft, reward, rl, validation and test.

    No prompt is in two folds, and the cut does not depend on the order of the rows. A SIZE is a share of the prompts
    (0.1) or a number of pairs (500). The folds sft, reward and rl get equal parts of the other pairs.

    \b
    Examples:
      pit data prepare pairs.jsonl --out folds
      pit data prepare pairs.jsonl --out folds --test 500 --validation 200
      pit data prepare folder/of/csv --out folds --skip-invalid --force
    """
    from pitlm.data.dataset import load_preferences, reading
    from pitlm.data.folds import cut_folds, write_folds
    from pitlm.data.readers import check_outside
    from pitlm.io.templates import template

    out = how.out
    if out.exists() and not out.is_dir():
        raise InputError.at(out, found="a file", expected="a folder to write the folds to")
    if out.is_dir() and not how.force and any(out.iterdir()):
        expected = "a new one, or --force to replace its folds"
        raise InputError.at(out, found="a folder that is not empty", expected=expected)
    check_outside(source, out)  # the next run would read the folds as data
    out.mkdir(parents=True, exist_ok=True)
    rejects = out / _REJECTS if how.skip_invalid else None
    loaded = load_preferences(source, skip_invalid=how.skip_invalid, rejects=rejects, columns=columns, progress=True)
    if rejects is None:
        (out / _REJECTS).unlink(missing_ok=True)
    summary = write_folds(out, cut_folds(loaded.preferences, test=how.test, validation=how.validation), loaded)

    about = {"summary": summary, "reading": reading(**loaded.counts()), "out": out}
    echo(template("pitlm.cli", "prepare.j2").render(about, rejects=loaded.invalid and rejects), nl=False)
