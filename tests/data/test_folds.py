"""No prompt is in two folds, no pair is lost, and the order of pairs does not change the cut."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitlm.core.errors import InputError
from pitlm.core.nouns import Preference, Prompt
from pitlm.data.dataset import Loaded
from pitlm.data.folds import FOLDS, cut_folds, read_folds, write_folds


def pairs_on(*prompts: str) -> list[Preference]:
    return [Preference(Prompt.of(prompt), f"good {number}", "bad") for number, prompt in enumerate(prompts)]


def many(count: int) -> list[Preference]:
    return pairs_on(*(f"prompt {number}" for number in range(count)))


prompt_numbers = st.lists(st.integers(0, 40), min_size=5, max_size=80).filter(lambda found: len(set(found)) >= 5)
shares = st.floats(0.001, 0.3)


@given(prompt_numbers, shares, shares, st.randoms(use_true_random=False))
def test_no_prompt_crosses_folds_and_nothing_is_lost(
    numbers: list[int], test: float, validation: float, order: random.Random
) -> None:
    pairs = pairs_on(*(f"prompt {number}" for number in numbers))
    try:
        folds = cut_folds(pairs, test=test, validation=validation)
    except InputError:
        return  # with so few prompts, chance changes the shares; the counts are checked below
    assert tuple(folds) == FOLDS
    assert all(folds.values())
    homes = {pair.prompt.key: fold for fold, members in folds.items() for pair in members}
    for fold, members in folds.items():
        assert all(homes[pair.prompt.key] == fold for pair in members)
    assert sorted(map(repr, pairs)) == sorted(repr(pair) for members in folds.values() for pair in members)
    thirds = [len({pair.prompt.key for pair in folds[fold]}) for fold in ("sft", "reward", "rl")]
    assert max(thirds) - min(thirds) <= 1
    shuffled = list(pairs)
    order.shuffle(shuffled)
    assert cut_folds(shuffled, test=test, validation=validation) == folds


def test_shares_are_met() -> None:
    folds = cut_folds(many(4000), test=0.2, validation=0.1)
    # three standard deviations of a binomial: sqrt(4000 * 0.2 * 0.8) = 25.3 and sqrt(4000 * 0.1 * 0.9) = 19
    assert abs(len(folds["test"]) - 800) < 76
    assert abs(len(folds["validation"]) - 400) < 57


def test_the_rest_is_cut_by_the_shares_of_sft_reward_and_rl() -> None:
    sizes = {"test": 10, "validation": 10}
    eighty = cut_folds(many(100), **sizes, shares=(0.1, 0.8, 0.1))
    assert [len(eighty[fold]) for fold in FOLDS] == [8, 64, 8, 10, 10]
    assert cut_folds(many(100), **sizes, shares=(2.5, 2.5, 2.5)) == cut_folds(many(100), **sizes)
    least = cut_folds(many(100), **sizes, shares=(1e-9, 1, 1e-9))
    assert [len(least[fold]) for fold in FOLDS] == [1, 78, 1, 10, 10]


def test_numbers_of_pairs_are_met_with_whole_prompts() -> None:
    folds = cut_folds(many(100), test=30, validation=10)
    assert [len(folds[fold]) for fold in FOLDS] == [20, 20, 20, 10, 30]
    thrice = pairs_on(*[f"prompt {number}" for number in range(20)] * 3)
    assert len(cut_folds(thrice, test=4, validation=0.2)["test"]) == 6


def test_a_share_after_a_number_is_a_share() -> None:
    folds = cut_folds(many(4000), test=1000, validation=0.1)
    assert len(folds["test"]) == 1000
    assert abs(len(folds["validation"]) - 400) < 57


def test_what_is_held_out_stays_held_out_as_data_grows() -> None:
    before = cut_folds(many(300), test=0.2, validation=0.1)
    after = cut_folds(many(600), test=0.2, validation=0.1)
    assert set(before["test"]) < set(after["test"])
    assert set(before["validation"]) < set(after["validation"])


def test_five_prompts_are_enough_and_four_are_not() -> None:
    assert [len(pairs) for pairs in cut_folds(many(5), test=1, validation=1).values()] == [1] * 5
    four = pairs_on("a", "a", "b", "c", "d", "d")
    with pytest.raises(InputError) as caught:
        cut_folds(four, test=1, validation=1)
    assert "found 6 pairs with 4 distinct prompts" in str(caught.value)
    assert "expected 3 or more left" in str(caught.value)
    with pytest.raises(InputError, match="found 0 pairs with 0 distinct prompts"):
        cut_folds([], test=0.1, validation=0.1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"test": 0.0, "validation": 0.1}, "test: found the share 0.0"),
        ({"test": 0.1, "validation": 1.0}, "validation: found the share 1.0"),
        ({"test": float("nan"), "validation": 0.1}, "test: found the share nan"),
        ({"test": 0, "validation": 0.1}, "test: found 0 pairs, expected 1 or more"),
        ({"test": 5, "validation": -1}, "validation: found -1 pairs"),
        ({"test": 0.6, "validation": 0.4}, "expected a sum below 1"),
        ({"test": 99, "validation": 1}, "of which test (99) and validation (1) take 100"),
        ({"test": 1000, "validation": 0.1}, "take 100; expected 3 or more left"),
    ],
)
def test_impossible_sizes(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        cut_folds(many(100), **sizes)
    assert message in str(caught.value)


def folder_of(tmp_path: Path) -> tuple[Path, dict[str, list[Preference]]]:
    pairs = many(30)
    folds = cut_folds(pairs, test=5, validation=4)
    write_folds(tmp_path / "folds", folds, Loaded(pairs, read=33, dropped={"equal responses": 2}, invalid=1))
    return tmp_path / "folds", folds


def test_folds_survive_the_disk(tmp_path: Path) -> None:
    folder, folds = folder_of(tmp_path)
    assert read_folds(folder) == folds
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{fold}.jsonl" for fold in FOLDS), "summary.json"]
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["read"], summary["kept"], summary["dropped"], summary["invalid"]) == (
        33,
        30,
        {"equal responses": 2},
        1,
    )
    assert summary["folds"]["validation"] == {"pairs": 4, "prompts": 4}
    first = json.loads((folder / "test.jsonl").read_text().splitlines()[0])
    assert first == folds["test"][0].as_dict()


def test_odd_text_survives_the_disk(tmp_path: Path) -> None:
    odd = ["\n\nHuman: x\n\nAssistant:", "line\u2028end", "tab\t\x00", '[{"role": "user", "content": "x"}]', "  "]
    folds = {fold: [Preference(Prompt.of(text + "?"), text, text + "!")] for fold, text in zip(FOLDS, odd, strict=True)}
    write_folds(tmp_path, folds, Loaded([pair for pairs in folds.values() for pair in pairs], 5))
    assert read_folds(tmp_path) == folds


def spoil(folder: Path, case: str) -> None:
    rl = folder / "rl.jsonl"
    lines = rl.read_text().splitlines()
    match case:
        case "unfinished":
            (folder / "summary.json").unlink()
        case "bad summary":
            (folder / "summary.json").write_text('{"folds": {}}')
        case "missing":
            rl.unlink()
        case "short":
            rl.write_text("\n".join(lines[:-1]))
        case "broken":
            rl.write_text("\n".join([lines[0], lines[1][:-3]]))
        case "wrong":
            rl.write_text("\n".join([lines[0], '{"prompt": "q", "chosen": 3, "rejected": "b"}']))
        case "crossing":
            rl.write_text("\n".join([*lines[:-1], (folder / "sft.jsonl").read_text().splitlines()[0]]))


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        (
            "unfinished",
            ["summary.json: cannot load a summary of folds, as `pit data prepare` writes it", "No such file"],
        ),
        ("bad summary", ["summary.json: cannot load a summary of folds", "no 'sft'"]),
        ("missing", ["rl.jsonl: found no such file", "the fold 'rl'"]),
        ("short", ["rl.jsonl: found 6 pairs", "expected 7"]),
        ("broken", ["rl.jsonl:2: found broken JSON", "expected one JSON object"]),
        ("wrong", ["rl.jsonl:2: field 'chosen': found a number (3)", "expected a string"]),
        ("crossing", ["rl.jsonl:7: found a prompt that is in fold 'sft' too", "expected it in one fold"]),
    ],
)
def test_spoilt_folders_are_refused(tmp_path: Path, case: str, parts: list[str]) -> None:
    folder, _ = folder_of(tmp_path)
    spoil(folder, case)
    with pytest.raises(InputError) as caught:
        read_folds(folder)
    for part in parts:
        assert part in str(caught.value)


def test_an_interrupted_rewrite_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, folds = folder_of(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_folds(folder, folds, Loaded(many(30), 30))
    assert not list(folder.glob(".*"))  # no half-written file stays behind
    with pytest.raises(InputError, match=r"summary\.json: cannot load a summary of folds.* No such file"):
        read_folds(folder)
