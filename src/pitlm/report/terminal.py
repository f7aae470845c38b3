"""Results on the terminal, as `pit run`, `pit evaluate` and `pit calibrate` print them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pitlm.evaluate.agreement import Agreement
from pitlm.evaluate.labels import Accuracy
from pitlm.evaluate.statistics import Interval
from pitlm.evaluate.summary import Summary, SystemFigures
from pitlm.io.console import make_console, print_table
from pitlm.io.templates import template
from pitlm.io.visible import echo
from pitlm.loop.margin import Calibrated, Outcome
from pitlm.report.shape import HEALTH, Report

EXAMPLES = 3
"""The number of printed examples, each an answer before and after."""

Rows = Sequence[Sequence[str]]


def print_report(report: Report) -> None:
    """Print what a run found so far: systems, the health of R_PIT, some answers before and after, and the headline."""
    console = make_console()
    if (summary := report.summary) is not None:
        for judge in report.judges:
            title = f"Against the original answer, {summary.items} held-out prompts, judge: {judge}"
            console.print()
            print_table(make_console(), _table(_ANSWERED, _answered(summary.by(judge)), title=title))
        _print_agreement(summary.agreement)
        _print_criteria(summary.by(report.judge))
    if health := [(HEALTH[key][0], *_health(value)) for key, value in report.health.items()]:
        print_table(make_console(), _table(("figure", "value", "95%"), health, title="Health of R_PIT"))
    words: Any = template("pitlm.report", "summary.j2").module
    console.print(Text(words.closing(report, report.examples[:EXAMPLES])), end="")


def print_summary(summary: Summary, *, differences: bool = True) -> None:
    """Print the tables of a summary that have something in them. ``differences`` prints those between systems, too."""
    words: Any = template("pitlm.report", "summary.j2").module
    echo(words.counted(summary), nl=False)
    for judge in dict.fromkeys(s.judge for s in summary.systems):
        _print_systems(summary, judge)
    if not differences:
        echo(f"\n{len(summary.differences):,} differences between systems: --differences, --json and --html show them.")
    for judge in dict.fromkeys(d.judge for d in summary.differences if differences):
        title = f"Between systems: one's Delta minus the other's, against {summary.baseline}, same items{_by(judge)}"
        headings = ["one", "other", "items", "difference", "better", "worse", "p", "sign p", "p Holm"]
        rows = []
        for d in (d for d in summary.differences if d.judge == judge):
            counts = (f"{d.test.items:,}", points(d.delta), f"{d.test.better:,}", f"{d.test.worse:,}")
            rows.append((d.first, d.second, *counts, *map(_p, (d.test.p, d.test.sign_p, d.p_holm))))
        _print(title, headings, rows, names=2)
    for judge, ranking in summary.rankings.items():
        first = f", shown first {_range(ranking.position, '.2f')}" if ranking.position else ""
        title, elo = f"Ranking{_by(judge)} (log-odds; ties nu {ranking.tie:.2f}{first})", summary.elo[judge]
        rows = [(name, _range(own, ".2f"), _range(elo[name], ".0f")) for name, own in ranking.strengths.items()]
        order = "by time" if summary.settings["timed"][judge] else "mean over random orders"
        _print(title, ("system", "Bradley-Terry", f"Elo, {order}"), rows)
    echo(words.unbounded(summary.rankings), nl=False)
    title = "Position (both orders): bias is the share that chose the first shown less the share that chose the second"
    headings = ["judge", "rows", "consistent", "bias", "first both times", "second both times"]
    rows = []
    for b in summary.position:
        consistent, both = _range(b.consistent, scale=100), (f"{b.first_both:,}", f"{b.second_both:,}")
        rows.append((b.judge, f"{b.rows:,}", consistent, points(b.bias), *both))
    _print(title, headings, rows)
    _print_agreement(summary.agreement)
    for name, figures in summary.added.items():
        _print(name, ("", "estimate"), [(label, _range(value, ".3f")) for label, value in figures.items()])


def print_accuracies(found: Sequence[Accuracy], rows: int) -> None:
    """Print how often each judge agrees with the labels."""
    title = f"Against labels, of {rows:,} verdicts (right: in both orders; JudgeBench: a win and a tie are a win, too)"
    rates = [(*(_range(rate, scale=100) for rate in (one.strict, one.lenient)), points(one.longer)) for one in found]
    table = [(one.judge or "-", f"{one.labelled:,}", *own) for one, own in zip(found, rates, strict=True)]
    _print(title, ("judge", "labelled", "right", "JudgeBench", "longer: judge - labels"), table)


def print_margins(found: Calibrated) -> None:
    """Print the effect of each margin on the answers, then the promise that the chosen margin keeps.

    Below the margins the table has "always accept". Then it has the chosen margin and "always accept" on the items that
    had no part in the choice.
    """
    console, known, chosen = make_console(), found.calibration, found.chosen.margin
    chosen_on = f"chosen on {known.items} fresh answers, up to {known.settings.rounds} rounds"
    console.print(f"\n{known.scorer}: {chosen_on}, judge: {known.judge}", style="bold")
    curve = sorted({*found.curve, found.chosen}, key=lambda one: one.margin)
    rows = [_outcome(f"{one.margin:.4g}{' *' if one.margin == chosen else ''}", one, found.always) for one in curve]
    table = _table(("margin", "made worse [95%]", "gain", "of always", "tokens", "of always"), rows, names=0)
    table.add_section()
    table.add_row(*_outcome("always accept", found.always, found.always))
    table.add_row(*_outcome("held out: *", found.held_out, found.held_out_always))
    table.add_row(*_outcome("held out: always", found.held_out_always, found.held_out_always))
    print_table(make_console(), table)
    for sentence in found.sentences():
        console.print(sentence, highlight=False)


def _outcome(name: str, outcome: Outcome, always: Outcome) -> tuple[str, ...]:
    """A row of the table of margins."""
    harm = outcome.as_dict()["harm"]
    worse = f"{harm['estimate']:.1%} [{100 * harm['low']:.1f}, {100 * harm['high']:.1f}]"
    gain = f"{outcome.gain / always.gain:.0%}" if always.gain else "-"
    tokens = f"{outcome.tokens / always.tokens:.0%}" if always.tokens else "-"
    return name, worse, f"{outcome.gain:+.3f}", gain, f"{outcome.tokens:.1f}", tokens


def _print_systems(summary: Summary, judge: str) -> None:
    """Print the tables of each system against the baseline, by one judge."""
    lines, by = summary.by(judge), _by(judge)
    counts, rates = [], []
    for s in (s for s in lines if s.system != summary.baseline):
        verdicts = (*_shares(s, "win", "tie", "loss", "inconsistent"), f"{s.tally.unparsable:,}")
        tested = (_number(100 * s.standard_error), _p(s.test.p), _p(s.p_holm))
        counts.append((s.system, f"{s.test.items:,}", *verdicts, points(s.delta), *tested))
        alpaca = map(_number, (s.alpaca.win_rate, s.alpaca.standard_error, s.alpaca.discrete_win_rate))
        needed = "-" if s.items_needed is None else f"{s.items_needed:,}"
        rates.append((s.system, *alpaca, _equal_lengths(s), _number(100 * s.detectable), needed))
    headings = ["system", "items", "win", "tie", "loss", "incons.", "unpars.", "Delta", "SE", "p", "p Holm"]
    _print(f"Against {summary.baseline}{by}", headings, counts)
    title = f"Win rate, a tie as half a win (AlpacaEval's), and the smallest Delta that so many items show{by}"
    headings = ["system", "win rate", "SE", "discrete", "at equal lengths", "shows from", "items needed"]
    shown = slice(-1 if summary.settings["wanted_delta"] is None else None)
    _print(title, headings[shown], [row[shown] for row in rates])
    costs = [(name, *own) for name, _, _, _, _, *own in _answered(lines)]
    _print(f"Quality, and the tokens of each answer{by}", (_ANSWERED[0], *_ANSWERED[5:]), costs)
    _print_criteria(lines)


_ANSWERED = ("system", "win", "tie", "loss", "Delta [95%]", "quality", "copies", "tokens", "gain / 100")


def _answered(systems: Iterable[SystemFigures]) -> Rows:
    """Rows of the table of a run: the rates of each system, and the tokens of its answers."""
    rows = []
    for s in systems:
        if s.answered is not None:
            quality = f"{s.quality.estimate:.2f}" if s.quality else "-"
            copies = "-" if s.system == s.baseline else _number(s.answered.copy_rate, ".1%")
            gain = f"{s.gain_per_100_tokens.estimate:+.2f}" if s.gain_per_100_tokens else "-"
            costs = (quality, copies, f"{s.answered.generated_tokens:.1f}", gain)
            rows.append((s.system, *_shares(s, "win", "tie", "loss"), points(s.delta), *costs))
    return rows


def _print_criteria(systems: Sequence[SystemFigures]) -> None:
    """Print the means of the criteria of a known truth, and the perplexity under the start model."""
    figures = {}
    for system, known in ((s.system, s.answered) for s in systems):
        if known is not None:
            figures[system] = {name.replace("_", " "): f"{mean:.2f}" for name, mean in known.criteria.items()}
            figures[system] |= {"perplexity": f"{known.perplexity:.1f}"} if known.perplexity else {}
    names = list(dict.fromkeys(name for own in figures.values() for name in own))
    rows = [(system, *(own.get(name, "-") for name in names)) for system, own in figures.items() if names]
    _print("What the answers are like, on average", ("system", *names), rows)


def _health(value: Interval | float) -> tuple[str, str]:
    """A figure of health, and its interval if it is a share."""
    if not isinstance(value, Interval):
        return _number(value, ".2f"), ""
    return _number(value.estimate, ".1%"), f"{100 * value.low:.1f}-{100 * value.high:.1f}%"


def _print_agreement(found: Agreement | None) -> None:
    if found is None:
        return
    coefficients = {
        **{f"Cohen's kappa: {a}, {b}": kappa for (a, b), kappa in found.cohen.items()},
        f"Fleiss' kappa, {found.complete:,} judged by all": found.fleiss,
        "Krippendorff's alpha, nominal": found.nominal,
        "Krippendorff's alpha, loss < tie < win": found.ordinal,
    }
    title = f"Agreement of {len(found.judges)} judges on {found.units:,} comparisons"
    _print(title, ("", "coefficient"), [(name, _range(value, ".3f")) for name, value in coefficients.items()])


def _print(title: str, headings: Sequence[str], rows: Rows, names: int = 1) -> None:
    """Print a table that is not empty. The title is printed apart, because a table folds it to its own width."""
    if rows:
        echo(f"\n{title}")
        print_table(make_console(), _table(headings, rows, names=names))


def _table(headings: Sequence[str], rows: Rows, *, names: int = 1, title: str = "") -> Table:
    """A table of plain text. On a narrow terminal the first ``names`` columns fold; columns of figures do not."""
    table = Table(title=Text(title) if title else None)
    for number, heading in enumerate(headings):
        if number < names:
            table.add_column(heading, overflow="fold", min_width=12)
        else:
            width = max(len(row[number]) for row in (headings, *rows))
            table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))  # square brackets in a name are no markup
    return table


def _by(judge: str) -> str:
    return f", judged by {judge}" if judge else ""


def _shares(system: SystemFigures, *verdicts: str) -> list[str]:
    """The share of each verdict among the judged rows."""
    return [_number(system.tally.share(verdict), ".1%") for verdict in verdicts]


def _equal_lengths(system: SystemFigures) -> str:
    controlled = system.length_controlled
    if controlled is None or controlled.reason:
        return controlled.reason if controlled else "-"
    return _range(controlled.win_rate, scale=100) + ("" if controlled.with_difficulty else " alone")


def _number(value: float, form: str = ".1f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else _number(value, ".3f")


def points(interval: Interval) -> str:
    """A Delta in points with its interval, always with its sign; a dash for NaN."""
    return _range(interval, "+.1f", 100) if math.isfinite(interval.estimate) else "-"


def _range(interval: Interval, form: str = ".1f", scale: float = 1) -> str:
    estimate, low, high = (_number(scale * v, form) for v in (interval.estimate, interval.low, interval.high))
    return f"{estimate} [{low}, {high}]"
