"""Tables on the terminal."""

import io

from rich.table import Table

from pitlm.io.console import VisibleConsole, print_table


def test_a_narrow_terminal_cuts_no_figure_and_no_name():
    table = Table()
    table.add_column("system", overflow="fold", min_width=9)
    for number in range(6):
        table.add_column(f"figure {number}", justify="right", no_wrap=True, min_width=22)
    figures = [f"+100.0 [-39.4, +10{number}.0]" for number in range(6)]
    table.add_row("best-of-N", *figures)
    written = io.StringIO()
    print_table(VisibleConsole(file=written, force_terminal=True, width=80), table)
    shown = written.getvalue()
    assert "best-of-N" in shown
    assert all(figure in shown for figure in figures)


def test_on_a_wide_terminal_a_table_is_as_wide_as_it_needs():
    table = Table("system", "figure")
    table.add_row("PIT", "+57.2")
    written = io.StringIO()
    print_table(VisibleConsole(file=written, force_terminal=True, width=200), table)
    assert max(map(len, written.getvalue().splitlines())) < 80
