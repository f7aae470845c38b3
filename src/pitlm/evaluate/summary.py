"""Everything that verdict rows say about their systems and judges, as one value: pure, no files, no printing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Unpack

from pitlm.core.errors import InputError
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate import statistics
from pitlm.evaluate.agreement import Agreement, PositionBias
from pitlm.evaluate.alpaca import Leaderboard, LengthControlled, item_difficulty, leaderboard, length_controlled
from pitlm.evaluate.answer_figures import AnswerFigures
from pitlm.evaluate.rankings import Ranking, bradley_terry, by_time, elo
from pitlm.evaluate.significance import PairedTest, delta_test, detectable_delta, difference_test, holm, items_needed
from pitlm.evaluate.statistics import CONFIDENCE, RESAMPLES, Interval, Resampling, Tally, rows_for, systems_of, tally
from pitlm.io.named_parts import find_part, part_names

GROUP = "pitlm.statistics"
"""The group of entry points in which other packages name their statistics."""
STATISTICS = {"position": "pitlm.evaluate.agreement:position_bias", "agreement": "pitlm.evaluate.agreement:agreement"}
"""Statistics of all rows together. Each is a function of the rows and of the settings of
:class:`pitlm.evaluate.statistics.Resampling`. The statistics of other packages return an interval for each label."""

RANKED = 3
"""The smallest number of systems for which a ranking says more than the table."""


@dataclass(frozen=True, slots=True)
class SystemFigures:
    """One system against the baseline, by one judge; the baseline's own line has no rows, so its rates are NaN.

    Attributes:
        p_holm: of ``test``, adjusted for all systems and judges of the table.
        detectable: the smallest Delta that this many items, at this rate of ties, show with 80% power at the 5% level.
        items_needed: items that would show the Delta that was asked for, by the same rule; None if none was asked
            for or ties are too many for it.
        lengths: mean length of the system's answers and of the baseline's, in characters; None if unknown.
        answered: None if only verdicts are known.
        quality: mean score; None without ``answered`` or if the judge gives no scores.
        gain_per_100_tokens: the quality that 100 generated tokens add to the baseline's; None if none were
            generated. Its interval is that of the gain alone; the number of tokens counts as exact.
    """

    judge: str
    system: str
    baseline: str
    tally: Tally
    delta: Interval
    win_rate: Interval
    standard_error: float
    alpaca: Leaderboard
    length_controlled: LengthControlled | None
    test: PairedTest
    p_holm: float
    detectable: float
    items_needed: int | None
    lengths: tuple[float, float] | None = None
    answered: AnswerFigures | None = None
    quality: Interval | None = None
    gain_per_100_tokens: Interval | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Delta of ``first`` less Delta of ``second``, both against the baseline, over the items that both have."""

    judge: str
    first: str
    second: str
    delta: Interval
    test: PairedTest
    p_holm: float

    def swap(self) -> Difference:
        delta = replace(self.delta, estimate=-self.delta.estimate, low=-self.delta.high, high=-self.delta.low)
        test = replace(self.test, better=self.test.worse, worse=self.test.better)
        return replace(self, first=self.second, second=self.first, delta=delta, test=test)


@dataclass(frozen=True, slots=True)
class Summary:
    """What :func:`summarise` returns; judges are keys of ``rankings`` and ``elo``.

    Attributes:
        unmatched: by judge, the systems that this judge did not compare with the baseline; only the rankings have them.
        itself: number of rows that compare a system with itself; no figure counts them.
        added: the statistics of other packages: the name of each, then a label for each interval.
    """

    baseline: str
    items: int
    rows: int
    unmatched: dict[str, list[str]]
    itself: int
    systems: list[SystemFigures]
    differences: list[Difference]
    rankings: dict[str, Ranking]
    elo: dict[str, dict[str, Interval]]
    position: list[PositionBias]
    agreement: Agreement | None
    added: dict[str, dict[str, Interval]]
    settings: dict[str, Any]

    def by(self, judge: str) -> list[SystemFigures]:
        """The figures of each system by one judge."""
        return [line for line in self.systems if line.judge == judge]

    def compared(self, judge: str, pairs: Sequence[tuple[str, str]]) -> list[Difference]:
        """The differences of ``pairs``, each seen from its first system; pairs without a common item are left out."""
        own = [d for d in self.differences if d.judge == judge]
        found = {(d.first, d.second): d for given in own for d in (given, given.swap())}
        return [found[pair] for pair in pairs if pair in found]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: NaN is null, pairs of judges are joined by " / ", an added statistic is under its name."""
        plain: dict[str, Any] = _plain(asdict(self))
        return {**plain.pop("added"), **plain}


@dataclass(frozen=True)
class _Judged:
    """The verdicts of one judge on each system: the rows against the baseline, seen from the system."""

    judge: str
    baseline: str
    against: Mapping[str, list[VerdictRow]]
    confidence: float

    @cached_property
    def difficulty(self) -> dict[str, dict[str, float]]:
        """For each system the difficulty of the items for the others; empty if it cannot be told."""
        return item_difficulty(self.against)

    def systems(self, known: Mapping[str, AnswerFigures], wanted: float | None) -> Iterator[SystemFigures]:
        """All figures of each system; ``known`` has those of the answers."""
        for name in dict.fromkeys([*known, *self.against]):
            figures = self.figures(name, wanted)
            yield self.with_answers(figures, known[name]) if name in known else figures

    def figures(self, system: str, wanted: float | None) -> SystemFigures:
        """The figures that verdicts alone give; ``p_holm`` is not adjusted yet."""
        rows = self.against.get(system, [])
        lengths = [row.lengths for row in rows if row.lengths is not None]
        counted, test = tally(rows), delta_test(rows)
        controlled = length_controlled(rows, difficulty=self.difficulty.get(system), confidence=self.confidence)
        ties = (counted.tie + counted.inconsistent) / counted.judged if counted.judged else math.nan
        return SystemFigures(
            judge=self.judge,
            system=system,
            baseline=self.baseline,
            tally=counted,
            delta=statistics.delta_interval(rows, confidence=self.confidence),
            win_rate=statistics.win_rate_interval(rows, confidence=self.confidence),
            standard_error=statistics.standard_error(rows),
            alpaca=leaderboard(rows),
            length_controlled=controlled,
            test=test,
            p_holm=test.p,
            detectable=detectable_delta(test.items, tie_rate=ties),
            items_needed=items_needed(wanted, tie_rate=ties) if wanted else None,
            lengths=tuple(sum(side) / len(side) for side in zip(*lengths, strict=True)) if lengths else None,
        )

    def with_answers(self, figures: SystemFigures, answered: AnswerFigures) -> SystemFigures:
        """The same figures with those of the system's answers and, if the judge gives scores, the system's quality."""
        is_baseline = figures.system == self.baseline
        rows = [row for name, own in self.against.items() for row in own if is_baseline or name == figures.system]
        mine = 1 if is_baseline else 0  # the baseline is second in every row
        scores = {row.item: (row.scores[mine], row.scores[1]) for row in rows if row.scores is not None}
        both = [scores[item] for item in sorted(scores)]
        if not both:
            return replace(figures, answered=answered)
        gain, per_100 = statistics.mean_interval([m - b for m, b in both], confidence=self.confidence), None
        if tokens := answered.generated_tokens:
            estimate, low, high = (value / (tokens / 100) for value in (gain.estimate, gain.low, gain.high))
            per_100 = replace(gain, estimate=estimate, low=low, high=high)
        quality = statistics.mean_interval([m for m, _ in both], confidence=self.confidence)
        return replace(figures, answered=answered, quality=quality, gain_per_100_tokens=per_100)

    def differences(self) -> Iterator[Difference]:
        """Between each two systems that have an item in common; ``p_holm`` is not adjusted yet."""
        for first, second in combinations(self.against, 2):
            a, b = self.against[first], self.against[second]
            if {row.item for row in a} & {row.item for row in b}:
                test, delta = difference_test(a, b), statistics.paired_difference(a, b, confidence=self.confidence)
                yield Difference(self.judge, first, second, delta, test, test.p)


def summarise(
    rows: Sequence[VerdictRow],
    *,
    baseline: str | None = None,
    answered: Mapping[str, AnswerFigures] | None = None,
    rank: bool | None = False,
    wanted: float | None = None,
    **how: Unpack[Resampling],
) -> Summary:
    """All figures of ``rows``, each judge by itself. No order of the rows changes a figure.

    Args:
        baseline: the system that the others are held against; by default that of :func:`most_compared`.
        answered: figures of the answers of a run's systems, the baseline among them, in the order of the tables.
        rank: True ranks any number of systems, False ``RANKED`` or more, None none.
        wanted: a Delta in (0, 1], for ``items_needed``.

    Raises:
        InputError: no row has the baseline in it, or no row compares two systems.
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("found no rows, expected at least one")
    given, rows = len(rows), [row for row in rows if row.first != row.second]
    if not rows:
        raise InputError(f"found {given} comparisons of a system with itself, expected comparisons of two systems")
    names = systems_of(rows)
    if (baseline := most_compared(rows) if baseline is None else baseline) not in names:
        raise InputError(f"--baseline: found '{baseline}', expected one of {', '.join(names)}")
    how = {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": 0, **how}
    known = {name: own for name, own in (answered or {}).items() if name in names}
    by_judge = {judge: [row for row in rows if row.judge == judge] for judge in sorted({row.judge for row in rows})}
    systems: list[SystemFigures] = []
    differences: list[Difference] = []
    unmatched: dict[str, list[str]] = {}
    for judge, own in by_judge.items():
        against = {name: found for name in names if name != baseline and (found := rows_for(own, name, baseline))}
        judged = _Judged(judge, baseline, against, how["confidence"])
        unmatched[judge] = sorted({*systems_of(own)} - {baseline, *against})
        systems += judged.systems(known, wanted)
        differences += judged.differences()
    adjusted, between = holm([s.test.p for s in systems]), holm([d.test.p for d in differences])
    usable = {j: [row for row in own if row.verdict is not Verdict.UNPARSABLE] for j, own in by_judge.items()}
    ranked = [j for j, own in usable.items() if rank or (rank is not None and len(systems_of(own)) >= RANKED)]
    made = {name: find_part(GROUP, STATISTICS, name)(rows, **how) for name in part_names(GROUP, STATISTICS)}
    return Summary(
        baseline=baseline,
        items=len({row.item for row in rows}),
        rows=len(rows),
        unmatched={judge: apart for judge, apart in unmatched.items() if apart},
        itself=given - len(rows),
        systems=[replace(s, p_holm=p) for s, p in zip(systems, adjusted, strict=True)],
        differences=[replace(d, p_holm=p) for d, p in zip(differences, between, strict=True)],
        rankings={judge: bradley_terry(by_judge[judge], **how) for judge in ranked},
        elo={judge: elo(by_judge[judge], confidence=how["confidence"], seed=how["seed"]) for judge in ranked},
        position=made.pop("position"),
        agreement=made.pop("agreement"),
        added=made,
        settings={**how, "wanted_delta": wanted, "timed": {judge: by_time(usable[judge]) for judge in ranked}},
    )


def most_compared(rows: Iterable[VerdictRow]) -> str:
    """The system that is compared with the most others; among equals the one that is second most often."""
    pairs, seconds = {frozenset((row.first, row.second)) for row in rows}, Counter(row.second for row in rows)
    others = Counter(name for pair in pairs for name in pair)
    return max(sorted(others), key=lambda name: (others[name], seconds[name]))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {" / ".join(k) if isinstance(k, tuple) else k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
