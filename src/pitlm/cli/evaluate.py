"""`pit evaluate`: what verdicts say about systems and judges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

    from pitlm.evaluate.agreement import Agreement
    from pitlm.evaluate.alpaca import Annotation
    from pitlm.evaluate.position import PositionBias
    from pitlm.evaluate.statistics import Interval
    from pitlm.evaluate.summary import Summary, SystemFigures

PLANNED_TIES = (0.0, 0.1, 0.25, 0.5)
"""Tie rates that `--plan` shows without files."""

EXAMPLES = """
\b
Examples:
  pit evaluate verdicts.jsonl
  pit evaluate ours.jsonl theirs.jsonl --baseline original --json figures.json
  pit evaluate results/*/annotations.json --rank
  pit evaluate verdicts.jsonl --alpaca annotations.json
  pit evaluate --plan 5
"""


def _share(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Points to a fraction."""
    return None if value is None else value / 100


@click.command(epilog=EXAMPLES)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="[FILE]...")
@click.option("--baseline", metavar="NAME", help="The system to hold the others against.  [default: the most usual]")
@click.option("--rank", is_flag=True, help="Also rank fewer than three systems.")
@click.option(
    "--plan",
    "wanted",
    type=click.FloatRange(0, 100, min_open=True),
    callback=_share,
    metavar="POINTS",
    help="Say how many items would show this Delta; works without files.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write all figures here."
)
@click.option(
    "--alpaca",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the verdicts as AlpacaEval annotations.",
)
@click.option("--resamples", default=2000, show_default=True, type=click.IntRange(min=1), help="Of each bootstrap.")
@click.option(
    "--confidence",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of each interval.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of all resampling.")
def evaluate(
    files: tuple[Path, ...],
    baseline: str | None,
    rank: bool,
    wanted: float | None,
    json_file: Path | None,
    alpaca: Path | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> None:
    """Win rates, Deltas, tests, rankings and agreement from FILEs of verdicts. Nothing is asked again.

    A FILE holds verdict rows, as `pit judge` writes them (.jsonl), or AlpacaEval's annotations (.json). Several are
    read as one. Intervals resample items, so several verdicts on one item are one piece of evidence.
    """
    if not files:
        if wanted is None:
            raise click.UsageError("found no FILE, expected at least one, or --plan POINTS")
        _print_plan(wanted)
        return
    from pitlm.evaluate.verdict_files import read_verdicts

    annotations = read_verdicts(files)
    options = {"rank": rank, "wanted": wanted, "resamples": resamples, "confidence": confidence, "seed": seed}
    show(annotations, baseline=baseline, json_file=json_file, alpaca=alpaca, **options)


def show(
    annotations: Sequence[Annotation],
    *,
    baseline: str | None,
    json_file: Path | None,
    alpaca: Path | None,
    **options: Any,
) -> None:
    """Summarise verdicts, wherever they come from; print, and write what was asked for.

    Args:
        options: of :func:`pitlm.evaluate.summary.summarise`.

    Raises:
        InputError: there is no such baseline.
    """
    from pitlm.core.errors import InputError
    from pitlm.evaluate.summary import summarise
    from pitlm.evaluate.verdict_files import write_annotations

    rows = [annotation.row for annotation in annotations]
    names = sorted({name for row in rows for name in (row.first, row.second)})
    if baseline is not None and baseline not in names:
        raise InputError(f"--baseline: found '{baseline}', expected one of {', '.join(names)}")
    summary = summarise(rows, baseline=baseline, **options)
    print_summary(summary)
    if json_file is not None:
        import json

        from pitlm.runs.atomic import write_text

        write_text(json_file, json.dumps(summary.as_dict(), indent=2, ensure_ascii=False) + "\n")
        click.echo(f"Figures written to {json_file}")
    if alpaca is not None:
        write_annotations(alpaca, annotations)
        click.echo(f"{len(annotations):,} annotations written to {alpaca}")


def print_summary(summary: Summary) -> None:
    """Print the tables of a summary that have something in them."""
    from pitlm.runs.console import make_console

    console = make_console()
    settings = summary.settings
    click.echo(
        f"{summary.rows:,} verdicts on {summary.items:,} items. Intervals: {100 * settings['confidence']:g}%, "
        f"{settings['resamples']:,} resamples of items, seed {settings['seed']}."
    )
    for table in (*_systems(summary), *_differences(summary), *_rankings(summary)):
        _print(console, table)
    for judge, ranking in summary.rankings.items():
        if not ranking.exists:
            click.echo(
                f"{judge or 'Ranking'}: some system never lost, or never won, against the rest, so Bradley-Terry has "
                "no finite estimate. The strengths are held by a prior: read their order, not their distances."
            )
    for table in (*_position(summary.position), *_agreement(summary.agreement)):
        _print(console, table)


def _print(console: Console, table: Table) -> None:
    click.echo(f"\n{table.title}")
    table.title = None
    console.print(table)


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    from rich.table import Table

    # The title is printed apart, because a table folds it to its own width.
    table = Table(title=title)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)  # where it is tight, names fold and figures do not
    return table


def _add(table: Table, *cells: str) -> None:
    """Add a row of plain text: what stands in square brackets is a name's own, not markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))


def _by(judge: str) -> str:
    return f", judged by {judge}" if judge else ""


def _systems(summary: Summary) -> Iterable[Table]:
    for judge in dict.fromkeys(s.judge for s in summary.systems):
        own = [s for s in summary.systems if s.judge == judge]
        yield _counts(own, f"Against {summary.baseline}{_by(judge)}")
        title = "Win rate, a tie as half a win (AlpacaEval's), and the smallest Delta that so many items show"
        yield _rates(own, title + _by(judge), planned=summary.settings["wanted_delta"] is not None)


def _counts(systems: Iterable[SystemFigures], title: str) -> Table:
    headings = ("items", "win", "tie", "loss", "incons.", "unpars.", "Delta", "SE", "p", "p Holm")
    table = _table(title, ("system",), headings)
    for s in systems:
        t = s.tally
        shares = [_rate(count / t.judged if t.judged else math.nan) for count in (t.win, t.tie, t.loss, t.inconsistent)]
        figures = (_points(s.delta), _number(100 * s.standard_error), _p(s.test.p), _p(s.p_holm))
        _add(table, s.system, f"{s.test.items:,}", *shares, f"{t.unparsable:,}", *figures)
    return table


def _rates(systems: Iterable[SystemFigures], title: str, *, planned: bool) -> Table:
    headings = ("win rate", "SE", "discrete", "at equal lengths", "shows from", *(("items needed",) if planned else ()))
    table = _table(title, ("system",), headings)
    for s in systems:
        rates = (_number(rate) for rate in (s.alpaca.win_rate, s.alpaca.standard_error, s.alpaca.discrete_win_rate))
        lc = s.length_controlled
        equal = "-" if lc is None else lc.reason or _range(lc.win_rate, 100)
        needed = "-" if s.items_needed is None else f"{s.items_needed:,}"
        _add(table, s.system, *rates, equal, _number(100 * s.detectable), *((needed,) if planned else ()))
    return table


def _differences(summary: Summary) -> Iterable[Table]:
    for judge in dict.fromkeys(d.judge for d in summary.differences):
        table = _table(
            f"Between systems: Delta against {summary.baseline} of one less that of the other, same items{_by(judge)}",
            ("one", "other"),
            ("items", "difference", "better", "worse", "p", "sign p", "p Holm"),
        )
        for d in summary.differences:
            if d.judge == judge:
                counts = (f"{d.test.items:,}", _points(d.delta), f"{d.test.better:,}", f"{d.test.worse:,}")
                _add(table, d.first, d.second, *counts, _p(d.test.p), _p(d.test.sign_p), _p(d.p_holm))
        yield table


def _rankings(summary: Summary) -> Iterable[Table]:
    for judge, ranking in summary.rankings.items():
        shown = f", shown first {_range(ranking.position, 1, 2)}" if ranking.position else ""
        title = f"Ranking{_by(judge)} (log-odds; ties nu {ranking.tie:.2f}{shown})"
        table = _table(title, ("system",), ("Bradley-Terry", "Elo"))
        for name, strength in ranking.strengths.items():
            _add(table, name, _range(strength, 1, 2), _range(summary.elo[judge][name], 1, 0))
        if ranking.strengths:
            yield table


def _position(biases: Iterable[PositionBias]) -> Iterable[Table]:
    table = _table(
        "Position (both orders): bias is the share that chose the first shown less the share that chose the second",
        ("judge",),
        ("rows", "consistent", "bias", "first both times", "second both times"),
    )
    for b in biases:
        flips = (f"{b.first_both:,}", f"{b.second_both:,}")
        _add(table, b.judge, f"{b.rows:,}", _range(b.consistent, 100), _points(b.bias), *flips)
    return (table,) if table.row_count else ()


def _agreement(found: Agreement | None) -> Iterable[Table]:
    if found is None:
        return ()
    table = _table(f"Agreement of {len(found.judges)} judges on {found.units:,} comparisons", ("",), ("coefficient",))
    for (a, b), kappa in found.cohen.items():
        _add(table, f"Cohen's kappa: {a}, {b}", _range(kappa, 1, 3))
    _add(table, f"Fleiss' kappa, {found.complete:,} judged by all", _range(found.fleiss, 1, 3))
    _add(table, "Krippendorff's alpha, nominal", _range(found.nominal, 1, 3))
    _add(table, "Krippendorff's alpha, loss < tie < win", _range(found.ordinal, 1, 3))
    return (table,)


def _print_plan(wanted: float) -> None:
    from pitlm.evaluate.significance import items_needed

    click.echo(f"Items that show a Delta of {100 * wanted:g} points (two-sided, 5% level, 80% power; Connor, 1987):")
    for ties in PLANNED_TIES:
        needed = f"{items_needed(wanted, tie_rate=ties):,}" if wanted <= 1 - ties else "not possible"
        click.echo(f"  {ties:4.0%} ties or inconsistent  {needed}")


def _number(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _rate(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}"


def _points(interval: Interval) -> str:
    """A Delta in points, always with its sign."""
    if math.isnan(interval.estimate):
        return "-"
    return f"{100 * interval.estimate:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _range(interval: Interval, scale: float, digits: int = 1) -> str:
    low, high = (_number(scale * bound, digits) for bound in (interval.low, interval.high))
    return f"{_number(scale * interval.estimate, digits)} [{low}, {high}]"
