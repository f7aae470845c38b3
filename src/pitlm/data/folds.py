"""The five disjoint folds of a run, cut by prompt, and the folder that holds them."""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pitlm.core.errors import InputError, loading
from pitlm.core.nouns import Preference, Prompt
from pitlm.data.dataset import Loaded, parse_preference
from pitlm.data.readers import read_rows
from pitlm.data.shapes import RowDropped
from pitlm.io.atomic import write_json_lines, write_text

FOLDS = ("sft", "reward", "rl", "validation", "test")
SUMMARY = "summary.json"

Size = int | float
"""The size of a fold: an int is a number of pairs, a float a share of the prompts."""


def cut_folds(
    preferences: Iterable[Preference], *, test: Size, validation: Size, shares: Sequence[float] = (1, 1, 1)
) -> dict[str, list[Preference]]:
    """Cut preferences into the five folds so that no prompt (by ``Prompt.key``) is in two of them.

    Each prompt has a place between 0 and 1, the hash of its key. ``test`` takes the lowest places, ``validation`` the
    next, and sft, reward and rl the prompts that are left, by their shares. So the cut depends neither on chance nor on
    the order of the rows, and a prompt that is held out by share stays held out when data is added.

    Args:
        test: a float is a share of the prompts, between 0 and 1; an int is a number of pairs, reached with whole
            prompts.
        validation: as ``test``. Each of the two takes at least one prompt.
        shares: relative sizes of sft, reward and rl: positive numbers of any sum. Each fold takes at least one prompt.

    Raises:
        InputError: a share or number out of range, or too few prompts for every fold to have one.
    """
    for name, size in (("test", test), ("validation", validation)):
        if isinstance(size, float) and not 0 < size < 1:
            expected = "one between 0 and 1, or a whole number of pairs"
            raise InputError(f"{name}: found the share {size}, expected {expected}")
        if isinstance(size, int) and size < 1:
            raise InputError(f"{name}: found {size} pairs, expected 1 or more")
    if isinstance(test, float) and isinstance(validation, float) and test + validation >= 1:
        raise InputError(f"test and validation: found shares {test} + {validation}, expected a sum below 1")
    groups: dict[str, list[Preference]] = {}
    for preference in preferences:
        groups.setdefault(preference.prompt.key, []).append(preference)
    hashes = {key: hashlib.sha256(key.encode()).digest() for key in groups}
    placed = sorted((int.from_bytes(digest[:8]) / 2**64, key) for key, digest in hashes.items())
    places = [place for place, _ in placed]
    sizes = [len(groups[key]) for _, key in placed]
    first = _end(test, 0.0, places, sizes, 0)
    # If both are shares, validation begins where the share of test ends, not at the last prompt of test: new data would
    # move that prompt.
    base = test if isinstance(test, float) else places[first] if first < len(places) else 1.0
    second = _end(validation, base, places, sizes, first)
    rest = len(placed) - second
    if rest < 3:
        raise InputError(
            f"folds: found {sum(sizes)} pairs with {len(placed)} distinct prompts, of which test ({test}) and "
            f"validation ({validation}) take {min(second, len(placed))}; expected 3 or more left, one each for sft, "
            "reward and rl"
        )
    ends = [int(rest * part // sum(shares)) for part in accumulate(shares)]
    ends = [min(max(end, number), rest - 3 + number) for number, end in enumerate(ends, start=1)]
    bounds = [0, first, second, *(second + end for end in ends)]
    spans = dict(zip(("test", "validation", "sft", "reward", "rl"), pairwise(bounds), strict=True))
    for pairs in groups.values():  # so that equal data gives equal files whatever order it came in
        pairs.sort(key=lambda pair: (pair.chosen, pair.rejected))
    return {fold: [pair for _, key in placed[slice(*spans[fold])] for pair in groups[key]] for fold in FOLDS}


def _end(size: Size, base: float, places: Sequence[float], sizes: Sequence[int], start: int) -> int:
    """The index after the last prompt of a fold that starts at ``start``; with too few prompts, after all of them."""
    if isinstance(size, float):
        return max(start + 1, bisect_left(places, base + size))
    return min(len(sizes), start + 1 + bisect_left(list(accumulate(sizes[start:])), size))


def write_folds(folder: Path, folds: Mapping[str, Sequence[Preference]], loaded: Loaded) -> dict[str, Any]:
    """Write ``{fold}.jsonl`` for each fold and, last, ``summary.json``, which marks the folder complete.

    Returns:
        The summary: rows read, kept, dropped and invalid, and the pairs and distinct prompts of each fold.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the folder then has no summary.
    """
    sizes = {fold: {"pairs": len(pairs), "prompts": len(unique_prompts(pairs))} for fold, pairs in folds.items()}
    summary = {**loaded.counts(), "folds": sizes}
    (folder / SUMMARY).unlink(missing_ok=True)
    for fold, pairs in folds.items():
        write_json_lines(folder / f"{fold}.jsonl", (pair.as_dict() for pair in pairs))
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def read_folds(folder: Path) -> dict[str, list[Preference]]:
    """Read back what :func:`write_folds` wrote, in the same order.

    Raises:
        InputError: a missing or unfinished folder, an invalid row (by file and line), a number of pairs other than the
            summary's, or a prompt that is in two folds.
    """
    with loading(folder / SUMMARY, "summary of folds, as `pit data prepare` writes it"):
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["folds"]
        counts = {fold: int(summary[fold]["pairs"]) for fold in FOLDS}
    home: dict[str, str] = {}
    folds: dict[str, list[Preference]] = {}
    for fold in FOLDS:
        path = folder / f"{fold}.jsonl"
        if not path.is_file():
            expected = f"the fold '{fold}', as `pit data prepare` writes it"
            raise InputError.at(path, found="no such file", expected=expected)
        folds[fold] = []
        for row in read_rows(path):
            try:
                with row.errors_named():
                    preference = parse_preference(row.value())
            except RowDropped as error:
                raise InputError.at(path, line=row.line, found=str(error), expected="one prompt") from error
            other = home.setdefault(preference.prompt.key, fold)
            if other != fold:
                found = f"a prompt that is in fold '{other}' too"
                raise InputError.at(path, line=row.line, found=found, expected="it in one fold")
            folds[fold].append(preference)
        if len(folds[fold]) != counts[fold]:
            expected = f"{counts[fold]}, as {SUMMARY} says (prepare the folder again)"
            raise InputError.at(path, found=f"{len(folds[fold])} pairs", expected=expected)
    return folds


def unique_prompts(pairs: Sequence[Preference]) -> list[Prompt]:
    """Each prompt once, in the order of the pairs."""
    return list(dict.fromkeys(pair.prompt for pair in pairs))
