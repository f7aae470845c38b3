"""The tables of a summary of verdicts, as `pit evaluate` prints them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from pitlm.evaluate.agreement import Agreement
    from pitlm.evaluate.position import PositionBias
    from pitlm.evaluate.statistics import Interval
    from pitlm.evaluate.summary import Summary, SystemFigures


def print_summary(summary: Summary) -> None:
    """Print the tables of a summary that have something in them."""
    from pitlm.io.console import make_console

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
