"""`pit data`: look at preference pairs, and cut them into the folds of a run."""

import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from pitlm.cli.options import PATH, check_output, columns_option, figures_options, write_figures
from pitlm.core.errors import InputError
from pitlm.io.visible import echo

_SHOWN_CHARACTERS = 300
_REJECTS = "rejects.jsonl"
_COUNTS = {
    "distinct_prompts": "distinct prompts",
    "repeated_prompts": "pairs on a prompt seen before",
    "duplicates": "exact duplicates of an earlier pair",
    "contradictions": "pairs that contradict an earlier one",
    "contradicted_by_scores": "pairs whose own scores prefer the rejected answer",
    "with_system": "prompts with a system turn",
}
"""Counts that ``pit data inspect`` prints, and their names in the output."""


def _size(value: str) -> float:
    """Read a share (with a decimal point) or a whole number of pairs."""
    with suppress(ValueError):
        if math.isfinite(number := float(value)):
            return int(value) if value.strip().isdecimal() else number
    raise click.BadParameter(f"found {value!r}, expected a share such as 0.1 or a number of pairs such as 500")


_size_option = partial(click.option, show_default=True, type=_size, metavar="SIZE")


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
@click.option("--samples", default=3, show_default=True, type=click.IntRange(min=0), help="How many pairs to print.")
@click.option("--skip-invalid", is_flag=True, help="Count invalid rows and go on, instead of stopping at the first.")
@click.option("--floor", is_flag=True, help="Also train a bag of words and show how many held-out pairs it gets right.")
@figures_options
def inspect(
    source: str,
    columns: dict[str, str] | None,
    samples: int,
    skip_invalid: bool,
    floor: bool,
    json_file: Path | None,
    force: bool,
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

    check_output(json_file, force, "the figures")
    loaded = load_preferences(source, skip_invalid=skip_invalid, columns=columns, progress=True)
    figures = inspect_preferences(loaded)
    if floor:
        from pitlm.evaluate.floor import floor_share

        figures["floor"] = floor_share(loaded.preferences)
    echo(reading(**loaded.counts()))
    _print_figures(figures)
    console = make_console()
    for number, pair in enumerate(pick_samples(loaded.preferences, samples), start=1):
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
@click.option("--out", required=True, type=PATH, help="Folder to write the folds to.")
@_size_option("--test", default="0.1", help="Pairs to hold out for the evaluation.")
@_size_option("--validation", default="0.05", help="Pairs to hold out for choices during training.")
@click.option("--skip-invalid", is_flag=True, help=f"Put invalid rows into {_REJECTS}, and go on.")
@click.option("--force", is_flag=True, help="Replace the folds in a folder that is not empty.")
def prepare(
    source: str,
    columns: dict[str, str] | None,
    out: Path,
    test: float,
    validation: float,
    skip_invalid: bool,
    force: bool,
) -> None:
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
    from pitlm.io.console import make_console, make_table

    if out.exists() and not out.is_dir():
        raise InputError.at(out, found="a file", expected="a folder to write the folds to")
    if out.is_dir() and not force and any(out.iterdir()):
        expected = "a new one, or --force to replace its folds"
        raise InputError.at(out, found="a folder that is not empty", expected=expected)
    check_outside(source, out)  # the next run would read the folds as data
    out.mkdir(parents=True, exist_ok=True)
    rejects = out / _REJECTS if skip_invalid else None
    loaded = load_preferences(source, skip_invalid=skip_invalid, rejects=rejects, columns=columns, progress=True)
    if rejects is None:
        (out / _REJECTS).unlink(missing_ok=True)
    summary = write_folds(out, cut_folds(loaded.preferences, test=test, validation=validation), loaded)

    table = make_table("Folds", "fold", "pairs", "prompts")
    for fold, counts in summary["folds"].items():
        table.add_row(fold, f"{counts['pairs']:,}", f"{counts['prompts']:,}")
    make_console().print(table)
    echo(reading(**loaded.counts()))
    if loaded.invalid:
        echo(f"Invalid rows, each with its reason: {out / _REJECTS}")
    echo(f"Written to {out}")


def _print_figures(figures: Mapping[str, Any]) -> None:
    from rich.table import Table

    from pitlm.io.console import make_console, make_table

    lengths = make_table("Length in words", "", "mean", *figures["prompt_length"]["quantiles"], "longest")
    for name in ("prompt", "chosen", "rejected"):
        length = figures[f"{name}_length"]
        quantiles = (f"{value:,.0f}" for value in length["quantiles"].values())
        lengths.add_row(name, f"{length['mean']:,.1f}", *quantiles, f"{length['longest']:,}")
    table = Table(show_header=False, title="Pairs", title_justify="left")
    for key, name in _COUNTS.items():
        table.add_row(name, f"{figures[key]:,}")
    turns = [f"{number}: {count:,} pairs" for number, count in figures["turns"].items() if number < 5]
    many = sum(count for number, count in figures["turns"].items() if number >= 5)
    table.add_row("user turns in the prompt", "\n".join([*turns, f"5 or more: {many:,} pairs"] if many else turns))
    bias, won = figures["length_bias"], "no pair of unequal length in words"
    if bias["unequal"]:
        low, high = bias["interval_95"]
        won = f"{bias['share']:.1%}, 95% interval {low:.1%} to {high:.1%}\n"
        won += f"(of {bias['unequal']:,} pairs; {bias['same_length']:,} have equal lengths)"
    table.add_row("the longer response won", won)
    if (floor := figures.get("floor")) is not None:
        low, high = floor["low"], floor["high"]
        right = f"{floor['estimate']:.1%}, 95% interval {low:.1%} to {high:.1%}\n(of {floor['n']:,} held-out pairs)"
        table.add_row("a bag of words is right on", right)
    make_console().print("", lengths, "", table, sep="\n")
