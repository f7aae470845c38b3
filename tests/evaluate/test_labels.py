"""Judges against labels: by hand, on LLMBar against scikit-learn, and every way in which a label is found or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Reply, Verdict, VerdictRow
from pitlm.data.dataset import load_preferences
from pitlm.evaluate.labels import accuracies, read_labels

WIN, TIE, LOSS, INCONSISTENT, UNPARSABLE = list(Verdict)
DATA = Path(__file__).parents[3] / "shared" / "data"


def judged(item: str, straight: Verdict, swapped: Verdict, lengths: tuple[int, int] = (9, 4)) -> VerdictRow:
    replies = (Reply(False, straight), Reply(True, swapped))
    verdict = Verdict.of_orders(straight, swapped)
    return VerdictRow(item, "a", "b", verdict, replies=replies, judge="j", lengths=lengths)


def test_both_ways_to_count_by_hand():
    rows = [
        judged("1", WIN, WIN),  # right in both ways
        judged("2", WIN, TIE),  # right only as JudgeBench counts
        judged("3", WIN, LOSS),  # wrong
        judged("4", LOSS, LOSS),  # wrong
        judged("5", TIE, TIE),  # wrong
        judged("6", UNPARSABLE, WIN),  # an order that cannot be read; JudgeBench takes the other one
        judged("7", WIN, WIN, (4, 9)),  # right, and the shorter answer
    ]
    [found] = accuracies(rows, lambda row: WIN)
    assert (found.judge, found.labelled) == ("j", 7)
    assert found.strict.estimate == pytest.approx(2 / 7)
    assert found.lenient.estimate == pytest.approx(4 / 7)
    # The longer answer, without the unparsable row: judged it won once and lost twice, labelled it won five times of six.
    assert found.longer.estimate == pytest.approx(((1 - 2) / 6 - (5 - 1) / 6) / 2)


def test_labels_are_seen_from_the_rows_first_system_and_rows_without_one_are_left_out():
    rows = [judged("1", WIN, WIN), judged("2", LOSS, LOSS), judged("3", WIN, WIN)]
    gold = {"1": WIN, "2": LOSS}
    [found] = accuracies(rows, lambda row: gold.get(row.item))
    [turned] = accuracies([row.swap() for row in rows], lambda row: gold[row.item].swap() if row.item in gold else None)
    assert (found.labelled, found.strict.estimate) == (2, 1.0)
    assert (turned.strict, turned.lenient, turned.longer) == (found.strict, found.lenient, found.longer)
    with pytest.raises(InputError, match="found no label for any verdict"):
        accuracies(rows, lambda row: TIE)


def written(tmp_path: Path, *rows: dict) -> Path:
    path = tmp_path / "gold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row_of(prompt: str, first: str, second: str, item: str | None = None) -> VerdictRow:
    return VerdictRow(item or Prompt.of(prompt).key, "x", "y", WIN, lengths=(len(first), len(second)))


def test_a_preference_belongs_to_the_row_of_its_prompt_and_answers(tmp_path):
    label = read_labels(
        written(
            tmp_path,
            {"prompt": "p", "chosen": "good", "rejected": "poor one"},
            {"prompt": "p", "chosen": "another", "rejected": "no"},
            {"prompt": "q", "chosen": "left", "rejected": "long", "id": 7},  # answers of one length
            {"prompt": "r", "chosen": "abc", "rejected": "d", "id": "r-1"},
            {"prompt": "s", "chosen": "abc", "rejected": "d"},
            {"prompt": "s", "chosen": "e", "rejected": "fgh"},  # contradicts the one before by length
            {"prompt": "t", "chosen": "abc", "rejected": 5},  # cannot be read
        )
    )
    assert label(row_of("p", "good", "poor one")) is WIN
    assert label(row_of("p", "poor one", "good")) is LOSS
    assert label(row_of("p", "another", "no")) is WIN
    assert label(row_of("p", "something", "else")) is None
    assert label(row_of("q", "left", "long")) is None
    assert label(row_of("", "d", "abc", item="r-1")) is LOSS
    assert label(row_of("", "abc", "d", item=Prompt.of("r").key + "#2")) is WIN  # a repeated prompt
    assert label(row_of("s", "abc", "d")) is None
    assert label(VerdictRow(Prompt.of("p").key, "x", "y", WIN)) is None  # without lengths


def test_peoples_verdicts_are_labels_by_item_and_systems(tmp_path):
    label = read_labels(written(tmp_path, VerdictRow("1", "a", "b", LOSS, judge="ann").as_dict()))
    assert label(VerdictRow("1", "a", "b", WIN)) is LOSS
    assert label(VerdictRow("1", "b", "a", WIN)) is WIN
    assert label(VerdictRow("2", "a", "b", WIN)) is None


def test_most_people_decide_and_a_vote_that_cannot_be_read_is_none(tmp_path):
    votes = [("1", WIN), ("1", LOSS), ("1", WIN), ("2", UNPARSABLE), ("2", LOSS), ("3", UNPARSABLE)]
    rows = [VerdictRow(item, "a", "b", v, judge=f"{n}").as_dict() for n, (item, v) in enumerate(votes)]
    label = read_labels(written(tmp_path, *rows))
    assert [label(VerdictRow(item, "a", "b", TIE)) for item in "123"] == [WIN, LOSS, None]


def test_people_who_contradict_one_another_give_no_label(tmp_path):
    votes = [("1", WIN, "ann"), ("1", LOSS, "bob"), ("2", WIN, "ann"), ("2", WIN, "bob")]
    label = read_labels(written(tmp_path, *(VerdictRow(i, "a", "b", v, judge=j).as_dict() for i, v, j in votes)))
    assert label(VerdictRow("1", "b", "a", WIN)) is None
    assert label(VerdictRow("2", "b", "a", WIN)) is LOSS


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not there")
@pytest.mark.parametrize(("file", "least"), [("llmbar/llmbar_all", 800), ("pandalm/pandalm_test", 600)])
def test_always_the_longer_answer_on_real_labels(file, least):
    """The judge's accuracy is scikit-learn's, and it prefers the longer answer more than people do."""
    source = DATA / f"{file}.jsonl.gz"
    pairs = load_preferences(source, skip_invalid=True).preferences
    rows = [
        VerdictRow(p.prompt.key, "a", "b", WIN if len(a) > len(b) else LOSS, judge="longer", lengths=(len(a), len(b)))
        for number, p in enumerate(pairs)
        for a, b in [(p.chosen, p.rejected) if number % 2 else (p.rejected, p.chosen)]
    ]
    label = read_labels(source)
    known = [(row, gold) for row in rows if (gold := label(row)) is not None]
    [found] = accuracies(rows, label)
    assert found.labelled == len(known) > least
    assert found.strict.estimate == pytest.approx(
        accuracy_score([gold for _, gold in known], [r.verdict for r, _ in known])
    )
    assert found.strict == found.lenient
    assert found.longer.low > 0


def test_an_id_may_hold_the_sign_of_a_repetition(tmp_path):
    row = {"id": "issue#7", "prompt": "a", "chosen": "good answer", "rejected": "bad"}
    (tmp_path / "labels.jsonl").write_text(json.dumps(row) + "\n")
    label = read_labels(tmp_path / "labels.jsonl")
    lengths = (len("good answer"), len("bad"))
    assert label(judged("issue#7", WIN, WIN, lengths)) is WIN
    assert label(judged("issue#8", WIN, WIN, lengths)) is None
