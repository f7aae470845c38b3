"""The human judge: what a rater sees, and which votes are stored."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Verdict, VerdictRow
from pitlm.judge.votes import Votes, ballots

COMPARISONS = [
    Comparison(Prompt.of(f"question {i}"), f"first {i}", f"second, {i}", f"item-{i}", ("ours", "theirs"))
    for i in range(400)
]
FEW = COMPARISONS[:3]


@pytest.fixture
def votes(tmp_path):
    return Votes(tmp_path / "votes.sqlite")


def history(votes):
    with closing(sqlite3.connect(votes.path)) as database:
        return database.execute("SELECT rater, verdict, shown_left, seconds FROM votes ORDER BY vote").fetchall()


def test_a_rater_sees_everything_once_in_an_order_of_their_own():
    ada, bob = ballots(COMPARISONS, "ada", "seed"), ballots(COMPARISONS, "bob", "seed")
    assert sorted(b.comparison.item for b in ada) == sorted(c.item for c in COMPARISONS)
    assert ada == ballots(COMPARISONS, "ada", "seed")
    orders = [[b.comparison.item for b in sheet] for sheet in (ada, bob, ballots(COMPARISONS, "ada", "other"))]
    assert len({tuple(order) for order in [*orders, [c.item for c in COMPARISONS]]}) == 4
    assert {b.key for b in ada}.isdisjoint(b.key for b in bob)


def test_sides_are_an_even_draw_for_each_rater_and_item():
    sides = [{b.comparison.item: b.swapped for b in ballots(COMPARISONS, name, "seed")} for name in ("ada", "bob")]
    together = [
        [ada == side and sides[1][item] == other for item, ada in sides[0].items()]
        for side in (0, 1)
        for other in (0, 1)
    ]
    for cell in together:  # 100 of 400 are expected in each; 35 is four standard deviations
        assert abs(sum(cell) - 100) < 35


def test_what_is_shown_depends_neither_on_which_system_is_named_first_nor_on_the_other_items():
    shown = {b.key: b.shown for b in ballots(COMPARISONS, "ada", "seed")}
    assert {b.key: b.shown for b in ballots([c.swap() for c in COMPARISONS], "ada", "seed")} == shown
    some = ballots(COMPARISONS[::3], "ada", "seed")
    assert [b.key for b in some] == [key for key in shown if key in {b.key for b in some}]
    namesakes = [Comparison(c.prompt, c.first, c.second, c.item, ("same", "same")) for c in COMPARISONS]
    assert 150 < sum(b.swapped for b in ballots(namesakes, "ada", "seed")) < 250


@pytest.mark.parametrize(
    ("swapped", "choice", "expected"),
    [
        (False, Verdict.WIN, Verdict.WIN),
        (False, Verdict.LOSS, Verdict.LOSS),
        (False, Verdict.TIE, Verdict.TIE),
        (True, Verdict.WIN, Verdict.LOSS),  # the left answer is better, and it is the second system's
        (True, Verdict.LOSS, Verdict.WIN),
        (True, Verdict.TIE, Verdict.TIE),
    ],
)
def test_a_choice_between_left_and_right_becomes_a_verdict_on_the_first(votes, swapped, choice, expected):
    ballot = next(b for b in ballots(COMPARISONS, "ada", "seed") if b.swapped == swapped)
    assert ballot.shown.first == (ballot.comparison.second if swapped else ballot.comparison.first)
    votes.add(ballot, "ada", choice, 2.5)
    (row,) = votes.rows()
    assert (row.item, row.first, row.second) == (ballot.comparison.item, "ours", "theirs")
    assert (row.judge, row.verdict, row.lengths) == (
        "ada",
        expected,
        (len(ballot.comparison.first), len(ballot.comparison.second)),
    )
    assert [(reply.swapped, reply.verdict) for reply in row.replies] == [(swapped, expected)]
    assert VerdictRow.from_dict(json.loads(json.dumps(row.as_dict()))) == row
    assert history(votes) == [("ada", str(expected), "second" if swapped else "first", 2.5)]


def test_the_last_vote_counts_and_the_earlier_ones_are_kept(votes):
    ballot = ballots(FEW, "ada", votes.seed)[0]
    votes.add(ballot, "ada", Verdict.WIN)
    votes.add(ballot, "ada", Verdict.TIE)
    assert [row.verdict for row in votes.rows()] == [Verdict.TIE]
    assert len(history(votes)) == 2


def test_undo_takes_back_one_vote_after_another(votes):
    sheet = ballots(FEW, "ada", votes.seed)
    other = ballots(FEW, "bob", votes.seed)
    votes.add(sheet[0], "ada", Verdict.WIN)
    votes.add(sheet[1], "ada", Verdict.WIN)
    votes.add(other[0], "bob", Verdict.WIN)
    assert votes.rated(sheet, "ada") == {sheet[0].key, sheet[1].key}
    assert votes.undo(sheet, "ada") == sheet[1]
    assert votes.rated(sheet, "ada") == {sheet[0].key}
    assert votes.undo(sheet, "ada") == sheet[0]
    assert votes.undo(sheet, "ada") is None
    assert [row.judge for row in votes.rows()] == ["bob"]
    votes.add(sheet[1], "ada", Verdict.TIE)
    assert [(row.judge, row.verdict) for row in votes.rows()] == [
        ("bob", votes.rows()[0].verdict),
        ("ada", Verdict.TIE),
    ]
    assert [verdict is None for _, verdict, _, _ in history(votes)] == [False, False, False, True, True, False]


def test_undo_leaves_votes_on_other_comparisons_alone(votes):
    earlier, sheet = ballots(COMPARISONS[3:4], "ada", votes.seed), ballots(FEW, "ada", votes.seed)
    votes.add(earlier[0], "ada", Verdict.WIN)
    assert votes.undo(sheet, "ada") is None
    assert len(votes.rows()) == 1


def test_a_vote_is_on_these_texts_and_holds_whichever_system_comes_first(votes):
    votes.add(ballots(FEW[:1], "ada", votes.seed)[0], "ada", Verdict.WIN)
    swapped = ballots([FEW[0].swap()], "ada", votes.seed)
    changed = ballots(
        [Comparison(FEW[0].prompt, "a new answer", FEW[0].second, "item-0", FEW[0].systems)], "ada", votes.seed
    )
    assert votes.rated(swapped, "ada") == {swapped[0].key}
    assert votes.rated(changed, "ada") == frozenset()
    before = votes.rows()[0]
    votes.add(swapped[0], "ada", Verdict.WIN)  # the same choice again, with the systems exchanged
    (after,) = votes.rows()
    assert after == before.swap()


def test_the_seed_is_the_file_s_own(votes, tmp_path):
    assert Votes(votes.path).seed == votes.seed
    assert Votes(tmp_path / "other.sqlite").seed != votes.seed


def test_only_three_things_can_be_voted(votes):
    ballot = ballots(FEW, "ada", votes.seed)[0]
    for verdict in (Verdict.INCONSISTENT, Verdict.UNPARSABLE):
        with pytest.raises(sqlite3.IntegrityError):
            votes.add(ballot, "ada", verdict)
    assert history(votes) == []


def test_votes_from_many_threads_and_two_openings_are_all_kept(votes):
    names = [f"rater-{i}" for i in range(8)]

    def work(name):
        own = Votes(votes.path)
        for ballot in ballots(COMPARISONS[:10], name, own.seed):
            own.add(ballot, name, Verdict.TIE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, names))
    assert len(votes.rows()) == 80
    assert {(row.judge, row.item) for row in votes.rows()} == {(n, c.item) for n in names for c in COMPARISONS[:10]}


@pytest.mark.parametrize("kind", ["text", "foreign database", "folder", "no parent"])
def test_another_file_is_refused_and_left_as_it_was(tmp_path, kind):
    path = tmp_path / "votes.sqlite"
    if kind == "text":
        path.write_text("my notes\n" * 200)
    elif kind == "foreign database":
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE votes (mine TEXT)")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "nowhere" / "votes.sqlite"
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InputError, match="expected a file of votes"):
        Votes(path)
    assert (path.read_bytes() if path.is_file() else None) == before
