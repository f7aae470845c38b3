"""Everything that verdict rows say about their systems and judges, as one value: pure, no files, no printing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.agreement import Agreement
from pitlm.evaluate.alpaca import Leaderboard, leaderboard
from pitlm.evaluate.length import LengthControlled, item_difficulty, length_controlled
from pitlm.evaluate.position import PositionBias
from pitlm.evaluate.rankings import Ranking, bradley_terry, elo
from pitlm.evaluate.significance import PairedTest, delta_test, detectable_delta, difference_test, holm, items_needed
from pitlm.evaluate.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    Tally,
    delta_interval,
    mean_interval,
    paired_difference,
    rows_for,
    standard_error,
    tally,
    win_rate_interval,
)
from pitlm.io.named_parts import find_part, part_names

GROUP = "pitlm.statistics"
"""The group of entry points in which other packages name their statistics."""
STATISTICS = {
    "position": "pitlm.evaluate.position:position_bias",
    "agreement": "pitlm.evaluate.agreement:agreement",
}
"""Statistics of all rows together. Each is a function of the rows and of the settings of
:class:`pitlm.evaluate.statistics.Resampling`. The statistics of other packages return an interval for each label."""

RANKED = 3
"""The smallest number of systems for which a ranking says more than the table."""


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """What a run knows of one system beside the verdicts on it; means over items.

    Attributes:
        copy_rate: share of the answers that equal the original answers of the run.
        answer_tokens: length of an answer.
        generated_tokens, prompt_tokens: what the system generated and read for one item.
    """

    copy_rate: float
    answer_tokens: float
    generated_tokens: float
    prompt_tokens: float


@dataclass(frozen=True, slots=True)
class SystemFigures:
    """One system against the baseline, by one judge; the baseline's own line has no rows, so its rates are NaN.

    Attributes:
        p_holm: of ``test``, adjusted for all systems and judges of the table.
        detectable: the smallest Delta that so many items, at this rate of ties, show with 80% power at the 5% level.
        items_needed: items that would show the Delta that was asked for, by the same rule; None where none was asked
            for or ties are too many for it.
        answered: None where only verdicts are known.
        quality: mean score; None without ``answered`` or where the judge gives no scores.
        gain_per_100_tokens: the quality that 100 generated tokens add to the baseline's; None where none were
            generated. Its interval is that of the gain: the tokens are taken as they were counted.
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
        added: the statistics of other packages: the name of each, then a label for each interval.
    """

    baseline: str
    items: int
    rows: int
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


def summarise(
    rows: Sequence[VerdictRow],
    *,
    baseline: str | None = None,
    answered: Mapping[str, AnswerFigures] | None = None,
    rank: bool | None = False,
    wanted: float | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Summary:
    """All figures of ``rows``, each judge by itself. No order of the rows changes a figure.

    Args:
        baseline: the system that the others are held against; by default the most usual second system.
        answered: what a run knows of its systems, the baseline among them, in the order in which they are shown.
        rank: True ranks any number of systems, False ``RANKED`` or more, None none.
        wanted: a Delta in (0, 1], for ``items_needed``.

    Raises:
        ValueError: no rows, or no row with the baseline in it.
    """
    names = sorted({name for row in rows for name in (row.first, row.second)})
    baseline = baseline or _usual_baseline(rows)
    if baseline not in names:
        raise ValueError(f"found no row with the baseline '{baseline}', expected one of {', '.join(names)}")
    options: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    known = {name: own for name, own in (answered or {}).items() if name in names}
    by_judge = {judge: [row for row in rows if row.judge == judge] for judge in sorted({row.judge for row in rows})}
    systems: list[SystemFigures] = []
    differences: list[Difference] = []
    for judge, own in by_judge.items():
        against = {name: found for name in names if name != baseline and (found := rows_for(own, name, baseline))}
        base = {row.item: row.scores[1] for found in against.values() for row in found if row.scores is not None}
        for name in dict.fromkeys([*known, *against]):
            more = _measured(against.get(name, []), base, known[name], options) if name in known else {}
            systems.append(replace(_figures(judge, name, baseline, against, wanted, options), **more))
        differences += [d for a, b in combinations(against, 2) if (d := _difference(judge, a, b, against, options))]
    adjusted, between = holm([s.test.p for s in systems]), holm([d.test.p for d in differences])
    ranked = {j: own for j, own in by_judge.items() if rank or (rank is not None and _systems(own) >= RANKED)}
    made = {name: find_part(GROUP, STATISTICS, name)(rows, **options) for name in part_names(GROUP, STATISTICS)}
    return Summary(
        baseline=baseline,
        items=len({row.item for row in rows}),
        rows=len(rows),
        systems=[replace(s, p_holm=p) for s, p in zip(systems, adjusted, strict=True)],
        differences=[replace(d, p_holm=p) for d, p in zip(differences, between, strict=True)],
        rankings={judge: bradley_terry(own, **options) for judge, own in ranked.items()},
        elo={judge: elo(own, confidence=confidence, seed=seed) for judge, own in ranked.items()},
        position=made.pop("position"),
        agreement=made.pop("agreement"),
        added=made,
        settings={"resamples": resamples, "confidence": confidence, "seed": seed, "wanted_delta": wanted},
    )


def _measured(
    rows: Sequence[VerdictRow], base: Mapping[str, float], answered: AnswerFigures, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of :class:`SystemFigures` that need more than verdicts; without ``rows`` those of the baseline.

    Args:
        base: the baseline's score on each item.
    """
    scores = {row.item: row.scores for row in rows if row.scores is not None}
    both = sorted((scores if rows else {item: (score, score) for item, score in base.items()}).items())
    if not both:
        return {"answered": answered}
    gain = mean_interval([mine - theirs for _, (mine, theirs) in both], **options)
    hundreds = answered.generated_tokens / 100
    per = {end: getattr(gain, end) / hundreds for end in ("estimate", "low", "high")} if hundreds else None
    return {
        "answered": answered,
        "quality": mean_interval([mine for _, (mine, _) in both], **options),
        "gain_per_100_tokens": None if per is None else replace(gain, **per),
    }


def _usual_baseline(rows: Sequence[VerdictRow]) -> str:
    if not rows:
        raise ValueError("found no rows, expected at least one")
    seconds = Counter(row.second for row in rows)
    return min(seconds, key=lambda name: (-seconds[name], name))


def _systems(rows: Sequence[VerdictRow]) -> int:
    judged = [row for row in rows if row.verdict is not Verdict.UNPARSABLE]
    return len({name for row in judged for name in (row.first, row.second)})


def _figures(
    judge: str,
    name: str,
    baseline: str,
    against: Mapping[str, Sequence[VerdictRow]],
    wanted: float | None,
    options: Mapping[str, Any],
) -> SystemFigures:
    rows = against.get(name, [])
    counted = tally(rows)
    ties = (counted.tie + counted.inconsistent) / counted.judged if counted.judged else math.nan
    others = [row for other, own in against.items() if other != name for row in own]
    difficulty = item_difficulty(others, {row.item for row in rows}) if others else None
    test = delta_test(rows)
    return SystemFigures(
        judge=judge,
        system=name,
        baseline=baseline,
        tally=counted,
        delta=delta_interval(rows, **options),
        win_rate=win_rate_interval(rows, **options),
        standard_error=standard_error(rows),
        alpaca=leaderboard(rows),
        length_controlled=length_controlled(rows, difficulty=difficulty, confidence=options["confidence"]),
        test=test,
        p_holm=test.p,
        detectable=detectable_delta(test.items, tie_rate=ties),
        items_needed=items_needed(wanted, tie_rate=ties) if wanted and wanted <= 1 - ties else None,
    )


def _difference(
    judge: str, first: str, second: str, against: Mapping[str, Sequence[VerdictRow]], options: Mapping[str, Any]
) -> Difference | None:
    shared = {row.item for row in against[first]} & {row.item for row in against[second]}
    if not shared:
        return None
    a, b = ([row for row in against[name] if row.item in shared] for name in (first, second))
    test = difference_test(a, b)
    return Difference(judge, first, second, paired_difference(a, b, **options), test, test.p)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {" / ".join(k) if isinstance(k, tuple) else k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
