"""Bradley-Terry against the published fits of two textbook data sets, brute force and invariances; Elo by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from pitlm.core.verdicts import Reply, Verdict, VerdictRow
from pitlm.evaluate.rankings import bradley_terry, elo

WIN, TIE, LOSS = Verdict.WIN, Verdict.TIE, Verdict.LOSS

# Davidson (1970), table 2: six brands of pudding; i, j, i preferred, j preferred, ties.
PUDDING = """
1 2 19 22 16 | 1 3 16 19 12 | 2 3 19 19 10 | 1 4 18 23 13 | 2 4 23 19 9 | 3 4 19 20 15 | 1 5 13 19 18 | 2 5 16 20 12
3 5 16 15 17 | 4 5 17 14 16 | 1 6 18 21 12 | 2 6 22 20 12 | 3 6 13 18 10 | 4 6 14 19 18 | 5 6 11 21 12
"""

# Agresti, Categorical Data Analysis, 2nd edition, table 10.10: American League East 1987, home wins - home losses, each
# line a home team, in the order of TEAMS without the team itself.
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
BASEBALL = {
    "Milwaukee": "4-3 4-2 4-3 6-1 4-2 6-0",
    "Detroit": "3-3 4-2 4-3 6-0 6-1 4-3",
    "Toronto": "2-5 4-3 2-4 4-3 4-2 6-0",
    "New York": "3-3 5-1 2-5 4-3 4-2 6-1",
    "Boston": "5-1 2-5 3-3 4-2 5-2 6-0",
    "Cleveland": "2-5 3-3 3-4 4-3 4-2 2-4",
    "Baltimore": "2-5 1-5 1-6 2-4 1-6 3-4",
}


def games(*counts: tuple[str, str, Verdict, int], shown: bool = False) -> list[VerdictRow]:
    """Rows for each count; with ``shown``, the first system was shown first."""
    rows = []
    for first, second, verdict, count in counts:
        replies = (Reply(False, verdict),) if shown else ()
        rows += [VerdictRow(f"{len(rows) + n:05d}", first, second, verdict, replies=replies) for n in range(count)]
    return rows


def pudding() -> list[VerdictRow]:
    counts = []
    for cell in PUDDING.replace("\n", "|").split("|"):
        if cell.strip():
            i, j, wins, losses, ties = cell.split()
            counts += [(i, j, WIN, int(wins)), (i, j, LOSS, int(losses)), (i, j, TIE, int(ties))]
    return games(*counts)


def baseball(shown: bool) -> list[VerdictRow]:
    counts = []
    for home, results in BASEBALL.items():
        for away, result in zip([team for team in TEAMS if team != home], results.split(), strict=True):
            won, lost = map(int, result.split("-"))
            counts += [(home, away, WIN, won), (home, away, LOSS, lost)]
    return games(*counts, shown=shown)


def estimates(ranking):
    return {name: interval.estimate for name, interval in ranking.strengths.items()}


def test_davidsons_puddings():
    # R: summary(PlackettLuce(R, npseudo = 0, weights = w, maxit = 7), ref = NULL) in PlackettLuce's "Overview"
    # vignette, with standard errors; seven iterations, as in Davidson, so the last digits differ from the maximum.
    published = {"1": -0.176581, "2": 0.043664, "3": -0.023617, "4": -0.001295, "5": -0.042726, "6": 0.200555}
    errors = {"1": 0.121949, "2": 0.121818, "3": 0.126823, "4": 0.122003, "5": 0.127054, "6": 0.126594}
    found = bradley_terry(pudding(), resamples=2000)
    assert estimates(found) == pytest.approx(published, abs=2e-4)
    assert found.tie == pytest.approx(0.7468147, abs=2e-5)
    assert (found.position, found.exists) == (None, True)
    assert list(found.strengths) == ["6", "2", "4", "3", "5", "1"]
    # The bootstrap's half-width is 1.96 standard errors, to the 3% or so that 2,000 resamples leave, and sampling.
    for name, interval in found.strengths.items():
        assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * errors[name], rel=0.12)


def test_agrestis_baseball():
    # Table 10.11, column 3, to the four digits that BTm prints; Baltimore is 0.
    published = {
        "Milwaukee": 1.5814, "Detroit": 1.4364, "Toronto": 1.2945, "New York": 1.2476, "Boston": 1.1077, "Cleveland": 0.6839,
    }  # fmt: skip
    found = estimates(bradley_terry(baseball(shown=False), resamples=1))
    assert {name: found[name] - found["Baltimore"] for name in published} == pytest.approx(published, abs=6e-5)


def test_agrestis_home_advantage():
    # Table 10.11, column 5, and the home advantage of 0.302, as BradleyTerry2's own test has them.
    found = bradley_terry(baseball(shown=True), resamples=1)
    worth = np.sort(np.exp(list(estimates(found).values())))
    assert worth / worth.sum() == pytest.approx([0.044, 0.088, 0.137, 0.157, 0.164, 0.190, 0.220], abs=5e-4)
    assert found.position is not None
    assert found.position.estimate == pytest.approx(0.302, abs=5e-4)


def test_ties_and_position_equal_a_brute_force_maximum():
    generator = np.random.default_rng(5)
    names, rows = ["a", "b", "c"], []
    for n in range(400):
        first, second = generator.choice(3, size=2, replace=False)
        verdict = [WIN, TIE, LOSS][generator.choice(3, p=[0.5, 0.2, 0.3] if first < second else [0.35, 0.2, 0.45])]
        swapped = bool(generator.integers(2))
        rows.append(VerdictRow(f"{n}", names[first], names[second], verdict, replies=(Reply(swapped, verdict),)))

    def loss(x):
        """The loss as in Davidson and Beaver (1977): worths pi, order effect theta on the system shown second."""
        pi, theta, nu, total = np.exp([x[0], x[1], -x[0] - x[1]]), math.exp(-x[2]), math.exp(x[3]), 0.0
        for row in rows:
            i, j, verdict = names.index(row.first), names.index(row.second), row.verdict
            if row.replies[0].swapped:
                i, j, verdict = j, i, verdict.swap()
            parts = {WIN: pi[i], TIE: nu * math.sqrt(pi[i] * pi[j]), LOSS: theta * pi[j]}
            total -= math.log(parts[verdict] / sum(parts.values()))
        return total

    best = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8})
    found = bradley_terry(rows, resamples=1)
    assert [estimates(found)[name] for name in names] == pytest.approx([*best.x[:2], -best.x[:2].sum()], abs=1e-4)
    assert found.position.estimate == pytest.approx(best.x[2], abs=1e-4)
    # Their tie term is not symmetric in the two orders, ours is: nu differs by the root of theta.
    assert math.log(found.tie) == pytest.approx(best.x[3] + best.x[2] / 2, abs=1e-4)


def test_two_systems_are_a_log_odds():
    found = bradley_terry(games(("x", "y", WIN, 30), ("x", "y", LOSS, 10), ("x", "y", TIE, 5)), resamples=1)
    assert found.strengths["x"].estimate - found.strengths["y"].estimate == pytest.approx(math.log(3), abs=1e-4)


def test_a_row_asked_in_both_orders_counts_once():
    straight = [VerdictRow(f"{n}", "x", "y", WIN if n % 3 else LOSS) for n in range(12)]
    both = [
        VerdictRow(r.item, r.first, r.second, r.verdict, replies=(Reply(False, r.verdict), Reply(True, r.verdict)))
        for r in straight
    ]
    one, two = bradley_terry(straight, resamples=1), bradley_terry(both, resamples=1)
    assert estimates(two) == pytest.approx(estimates(one))
    assert two.position.estimate == pytest.approx(0, abs=1e-6)


def test_a_judge_that_chooses_the_first_shown_is_all_position():
    rows = [
        VerdictRow(f"{n}", "x", "y", Verdict.INCONSISTENT, replies=(Reply(False, WIN), Reply(True, LOSS)))
        for n in range(18)
    ] + [
        VerdictRow(f"{n}", "x", "y", Verdict.INCONSISTENT, replies=(Reply(False, LOSS), Reply(True, WIN)))
        for n in range(18, 20)
    ]
    found = bradley_terry(rows, resamples=200)
    assert found.strengths["x"].estimate == pytest.approx(0, abs=1e-9)
    assert found.position.estimate == pytest.approx(math.log(9), abs=1e-3)
    assert found.position.low > 0


def test_position_is_left_out_where_it_cannot_be_told_apart():
    # One system was always shown first, so the data cannot separate its strength from the position.
    assert bradley_terry(games(("x", "y", WIN, 5), ("x", "y", LOSS, 5), shown=True), resamples=1).position is None


def test_a_system_that_never_lost_is_held_and_said():
    rows = games(("best", "mid", WIN, 20), ("mid", "worst", WIN, 10), ("mid", "worst", LOSS, 10))
    found = bradley_terry(rows, resamples=50)
    assert not found.exists
    assert next(iter(found.strengths)) == "best"
    for interval in found.strengths.values():
        assert all(
            math.isfinite(value) and abs(value) < 10 for value in (interval.estimate, interval.low, interval.high)
        )
    tied = games(("best", "mid", WIN, 20), ("best", "mid", TIE, 1))
    assert bradley_terry(tied, resamples=50).exists  # a tie connects the systems


def test_groups_that_never_met_are_said():
    rows = games(("a", "b", WIN, 5), ("a", "b", LOSS, 5), ("c", "d", WIN, 5), ("c", "d", LOSS, 5))
    assert not bradley_terry(rows, resamples=5).exists


def test_nothing_judged_is_an_empty_ranking():
    unparsable = [VerdictRow("1", "a", "b", Verdict.UNPARSABLE)]
    for rows in ([], unparsable):
        assert bradley_terry(rows).strengths == {}
        assert elo(rows) == {}
    one = bradley_terry(games(("a", "b", TIE, 1)), resamples=10)
    assert list(estimates(one).values()) == pytest.approx([0, 0])


ROWS = st.lists(
    st.builds(
        VerdictRow,
        st.sampled_from(["i", "j", "k"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["c", "d"]),
        st.sampled_from(list(Verdict)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_neither_swaps_nor_order_nor_copies_change_a_ranking(rows, random):
    found = bradley_terry(rows, resamples=20)
    mixed = [row.swap() if random.random() < 0.5 else row for row in rows]
    random.shuffle(mixed)
    again = bradley_terry(mixed, resamples=20)
    assert estimates(again) == pytest.approx(estimates(found), abs=1e-7)
    for name, interval in found.strengths.items():
        assert (again.strengths[name].low, again.strengths[name].high) == pytest.approx(
            (interval.low, interval.high), abs=1e-6
        )
    assert sum(estimates(found).values()) == pytest.approx(0, abs=1e-6)


def test_copies_of_all_rows_leave_the_maximum_where_it_is():
    assert estimates(bradley_terry(pudding() * 3, resamples=1)) == pytest.approx(
        estimates(bradley_terry(pudding(), resamples=1)), abs=1e-6
    )


def test_elo_of_one_game_by_hand():
    found = elo(games(("x", "y", WIN, 1)), shuffles=3)
    assert [found["x"].estimate, found["y"].estimate] == pytest.approx([1002, 998])  # 4 * (1 - 1/2)
    assert elo(games(("x", "y", TIE, 1)), shuffles=3)["x"].estimate == pytest.approx(1000)


def test_elo_of_equal_games_is_a_sequence():
    rating = 1000.0
    for _ in range(30):
        rating += 4 * (1 - 1 / (1 + 10 ** ((2000 - 2 * rating) / 400)))
    found = elo(games(("x", "y", WIN, 30)), shuffles=4)["x"]
    assert (found.estimate, found.low, found.high) == pytest.approx((rating, rating, rating))


def test_elo_orders_as_bradley_terry_and_keeps_its_sum():
    rows = pudding()
    found = elo(rows, shuffles=100)
    assert sum(interval.estimate for interval in found.values()) == pytest.approx(6000)
    assert [next(iter(found)), list(found)[-1]] == ["6", "1"]
    assert all(interval.low < interval.estimate < interval.high for interval in found.values())
    assert elo(rows[::-1], shuffles=100) == found  # only the seed matters, not order or file
    assert elo(rows, shuffles=100, seed=1) != found


def test_elo_by_time_is_one_pass_over_the_rows():
    """By hand with K = 4: x beats y at 1000 against 1000, then y beats x."""
    rows = [VerdictRow("b", "x", "y", LOSS, time=2.0), VerdictRow("a", "x", "y", WIN, time=1.0)]
    after = 4 * 0.5  # x gains this, y loses it
    expected = 1 / (1 + 10 ** (-2 * after / 400))
    by_hand = 1000 + after - 4 * expected
    assert elo(rows)["x"].estimate == pytest.approx(by_hand)
    assert elo(rows[::-1]) == elo(rows)
    turned = [VerdictRow(row.item, "x", "y", row.verdict, time=-row.time) for row in rows]
    assert elo(turned)["x"].estimate == pytest.approx(2000 - by_hand)
    untimed = [VerdictRow("c", "x", "y", TIE), *rows]
    assert elo(untimed)["x"].estimate == pytest.approx(1000, abs=0.1)  # the mean of all orders


def test_elo_by_time_does_not_see_the_order_of_the_rows():
    generator = np.random.default_rng(0)
    rows = [
        VerdictRow(f"{n % 7}", *generator.choice(["a", "b", "c"], 2, replace=False).tolist(), WIN, time=float(n % 11))
        for n in range(60)
    ]
    expected = elo(rows, shuffles=20)
    for _ in range(5):
        shuffled = [rows[n] if n % 2 else rows[n].swap() for n in generator.permutation(len(rows))]
        assert elo(shuffled, shuffles=20) == expected
    unparsable = VerdictRow("1", "a", "b", Verdict.UNPARSABLE)
    assert elo([*rows, unparsable], shuffles=20) == expected  # it is no game, so it needs no time
