"""Agreement against published examples, PandaLM's published kappas, and scikit-learn on LLMBar. Position bias by hand."""

from __future__ import annotations

import gzip
import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from pitlm.core.verdicts import Reply, Verdict, VerdictRow
from pitlm.evaluate.agreement import agreement, krippendorff_alpha, position_bias

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
_ = math.nan
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
).T

# Fleiss' kappa: ten subjects, 14 raters, five categories, as on Wikipedia; kappa 0.210.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def judged(judge: str, verdicts: str, *, first: str = "a", second: str = "b") -> list[VerdictRow]:
    names = {"w": Verdict.WIN, "t": Verdict.TIE, "l": Verdict.LOSS, "i": Verdict.INCONSISTENT, "u": Verdict.UNPARSABLE}
    return [VerdictRow(f"{n:03d}", first, second, names[v], judge=judge) for n, v in enumerate(verdicts)]


def load(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip("the shared data are not here")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def alpha(ratings, level):
    """Alpha where each unit counts once."""
    return krippendorff_alpha(ratings, level)(np.ones(len(ratings), dtype=int))


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_krippendorffs_own_example(level, published):
    assert alpha(KRIPPENDORFF, level) == pytest.approx(published, abs=5e-4)


def test_krippendorff_of_nothing_to_compare():
    assert math.isnan(alpha(np.array([[1.0, _], [_, 2.0]]), "nominal"))
    assert math.isnan(alpha(np.array([[1.0, 1.0], [1.0, 1.0]]), "nominal"))


def test_cohens_textbook_example():
    # 50 proposals, two readers: 20 both yes, 15 both no, 5 and 10 apart; kappa = (0.7 - 0.5) / (1 - 0.5) = 0.4.
    one = judged("A", "w" * 20 + "w" * 5 + "l" * 10 + "l" * 15)
    two = judged("B", "w" * 20 + "l" * 5 + "w" * 10 + "l" * 15)
    found = agreement(one + two, resamples=2000)
    kappa = found.cohen["A", "B"]
    assert kappa.estimate == pytest.approx(0.4)
    # statsmodels' and R's asymptotic interval of this table is 0.4 -+ 1.96 * 0.126.
    assert (kappa.low, kappa.high) == pytest.approx((0.4 - 0.247, 0.4 + 0.247), abs=0.05)


def test_fleiss_published_example():
    # The published table has more categories than verdicts have, so statsmodels, which agreement() uses, reads it.
    from statsmodels.stats.inter_rater import fleiss_kappa

    assert fleiss_kappa(np.array(FLEISS)) == pytest.approx(0.210, abs=5e-4)
    # By hand: three judges, four comparisons, (w, w, w), (w, w, l), (l, l, l), (w, l, t).
    rows = judged("A", "wwlw") + judged("B", "wwll") + judged("C", "wllt")
    observed, chance = (1 + 1 / 3 + 1 + 0) / 4, (6**2 + 5**2 + 1**2) / 12**2
    found = agreement(rows, resamples=10)
    assert found.fleiss.estimate == pytest.approx((observed - chance) / (1 - chance))
    assert (found.judges, found.units, found.complete) == (("A", "B", "C"), 4, 4)


def test_pandalms_published_kappas():
    verdicts = {0: Verdict.TIE, 1: Verdict.WIN, 2: Verdict.LOSS}
    rows = [
        VerdictRow(str(pair["idx"]), "response1", "response2", verdicts[pair[f"annotator{n}"]], judge=f"annotator{n}")
        for pair in load("pandalm/pandalm_test.jsonl.gz")
        for n in (1, 2, 3)
    ]
    assert len(rows) == 3 * 999
    found = agreement(rows, resamples=200)
    kappas = {pair: round(kappa.estimate, 2) for pair, kappa in found.cohen.items()}
    assert kappas == {
        ("annotator1", "annotator2"): 0.85,
        ("annotator1", "annotator3"): 0.88,
        ("annotator2", "annotator3"): 0.86,
    }
    assert all(kappa.low < kappa.estimate < kappa.high for kappa in found.cohen.values())
    # With complete data and many units, alpha and Fleiss' kappa are nearly equal.
    assert found.nominal.estimate == pytest.approx(found.fleiss.estimate, abs=1e-3)
    assert 0.85 < found.fleiss.estimate < 0.88


def test_llmbar_gold_against_the_longer_answer():
    data = load("llmbar/llmbar_all.jsonl.gz")
    gold = [Verdict.WIN if item["label"] == 1 else Verdict.LOSS for item in data]
    longer = [Verdict.WIN if len(item["output_1"]) > len(item["output_2"]) else Verdict.LOSS for item in data]
    rows = [VerdictRow(f"{n}", "1", "2", v, judge="gold") for n, v in enumerate(gold)]
    rows += [VerdictRow(f"{n}", "1", "2", v, judge="longer") for n, v in enumerate(longer)]
    found = agreement(rows, resamples=200).cohen["gold", "longer"]
    assert found.estimate == pytest.approx(cohen_kappa_score(gold, longer))
    # LLMBar is made so that superficial preferences mislead: the longer answer must not be a good judge.
    assert found.high < 0.2


VERDICTS = st.lists(st.tuples(*[st.sampled_from("wtliu")] * 3), min_size=2, max_size=15)


@settings(max_examples=40, deadline=None)
@given(VERDICTS, st.randoms(use_true_random=False))
def test_kappas_equal_scikit_learns_and_do_not_see_order_or_swaps(verdicts, random):
    strings = {judge: "".join(v[n] for v in verdicts) for n, judge in enumerate("ABC")}
    rows = [row for judge, own in strings.items() for row in judged(judge, own)]
    found = agreement(rows, resamples=2)
    mixed = [row.swap() if random.random() < 0.5 else row for row in rows]
    random.shuffle(mixed)
    again = agreement(mixed, resamples=2)
    if found is None:
        assert again is None
        return
    assert again.cohen == pytest.approx(found.cohen, nan_ok=True) or str(again) == str(found)
    for a, b in combinations(found.judges, 2):
        both = [(x, y) for x, y in zip(strings[a], strings[b], strict=True) if "u" not in (x, y)]
        estimate = found.cohen[a, b].estimate
        if both and len({x for pair in both for x in pair}) > 1:
            assert estimate == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))
        else:
            assert math.isnan(estimate)


def test_alpha_of_two_raters_by_hand():
    # Krippendorff's binary example has the coincidences 10, 4, 4, 2: alpha = 1 - 19 * 8 / (2 * 14 * 6) = 0.095.
    rows = judged("Meg", "wlwwwwwwlw") + judged("Owen", "lllwwlwwww")
    assert agreement(rows, resamples=5).nominal.estimate == pytest.approx(0.095, abs=5e-4)


def test_inconsistent_is_a_category_of_its_own_but_has_no_place_in_the_order():
    rows = judged("A", "wltii") + judged("B", "wltil")
    found = agreement(rows, resamples=5)
    assert found.ordinal.estimate == pytest.approx(1.0)
    assert found.nominal.estimate < 1


def test_judges_that_share_nothing():
    assert agreement([]) is None
    assert agreement(judged("A", "wl") + judged("B", "uu")) is None
    assert agreement(judged("A", "w") + judged("B", "w", second="c")) is None
    found = agreement(judged("A", "ww") + judged("B", "ww"), resamples=5)
    assert all(math.isnan(x.estimate) for x in (found.cohen["A", "B"], found.fleiss, found.nominal, found.ordinal))


WIN, TIE, LOSS, UNPARSABLE = Verdict.WIN, Verdict.TIE, Verdict.LOSS, Verdict.UNPARSABLE


def asked(item: int, *verdicts: tuple[bool, Verdict], judge: str = "j") -> VerdictRow:
    replies = tuple(Reply(swapped, verdict) for swapped, verdict in verdicts)
    return VerdictRow(f"{item}", "a", "b", WIN, replies=replies, judge=judge)


def both(item: int, straight: Verdict, swapped: Verdict, judge: str = "j") -> VerdictRow:
    return asked(item, (False, straight), (True, swapped), judge=judge)


def test_table_by_hand():
    rows = [
        both(0, WIN, WIN),  # a wins in both orders: no position bias
        both(1, WIN, LOSS),  # the first shown wins in both orders
        both(2, WIN, LOSS),
        both(3, LOSS, WIN),  # the second shown wins in both orders
        both(4, TIE, WIN),  # a tie, then the second shown wins
        both(5, TIE, TIE),
        asked(6, (False, WIN)),  # one order only
        asked(7, (False, WIN), (True, UNPARSABLE)),
    ]
    [found] = position_bias(rows, resamples=100)
    assert (found.judge, found.rows, found.first_both, found.second_both) == ("j", 6, 2, 1)
    assert found.consistent.estimate == pytest.approx(2 / 6)
    # Twelve replies: first shown 1 + 2 + 2 = 5, second shown 1 + 2 + 1 = 4, three ties.
    assert found.bias.estimate == pytest.approx((5 - 4) / 12)
    assert found.bias.low <= found.bias.estimate <= found.bias.high


def test_swapping_rows_changes_nothing():
    rows = [both(0, WIN, LOSS), both(1, WIN, WIN), both(2, TIE, LOSS), both(3, LOSS, LOSS)]
    assert position_bias([row.swap() for row in rows], resamples=50) == position_bias(rows, resamples=50)


def test_a_reply_that_was_asked_again_counts_by_its_last_parsable_answer():
    again = asked(0, (False, UNPARSABLE), (True, LOSS), (False, WIN))
    assert position_bias([again], resamples=5)[0].first_both == 1


def test_judges_apart_and_none_without_replies():
    rows = [both(0, WIN, LOSS, judge="x"), both(0, WIN, WIN, judge="w"), VerdictRow("1", "a", "b", WIN, judge="z")]
    assert [(line.judge, line.bias.estimate) for line in position_bias(rows, resamples=5)] == [("w", 0), ("x", 1)]
    assert position_bias([]) == []
