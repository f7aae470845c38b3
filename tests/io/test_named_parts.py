"""Finding named parts: pitlm's own, and those that another package adds through entry points."""

from __future__ import annotations

import importlib

import pytest

from pitlm.core.errors import InputError
from pitlm.io.named_parts import find_part, part_names

GROUP = "pitlm.test_parts"
BUILTIN = {"comma": "string:capwords", "brackets": "json:dumps"}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A package outside pitlm with two parts: one is broken, the other has the name of a builtin part."""
    metadata = tmp_path / "toys-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 0\n")
    lines = [f"[{GROUP}]", "whole = toys_of_pit:part", "broken = toys_of_pit:missing", "comma = toys_of_pit:part"]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "toys_of_pit.py").write_text("part = 'the part'\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def test_a_builtin_part_is_imported_by_its_name():
    import string

    assert find_part(GROUP, BUILTIN, "comma") is string.capwords
    assert part_names(GROUP, BUILTIN) == ["comma", "brackets"]


def test_another_package_adds_parts_and_replaces_none(added):
    import string

    assert part_names(GROUP, BUILTIN) == ["comma", "brackets", "broken", "whole"]
    assert find_part(GROUP, BUILTIN, "whole") == "the part"
    assert find_part(GROUP, BUILTIN, "comma") is string.capwords


def test_a_part_that_cannot_be_imported_is_named(added):
    with pytest.raises(
        InputError, match=r"pitlm.test_parts: 'broken': found .*missing.*, expected toys_of_pit:missing"
    ):
        find_part(GROUP, BUILTIN, "broken")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bracket", "pitlm.test_parts: found 'bracket', did you mean 'brackets'? Known: comma, brackets"),
        ("xyz", "pitlm.test_parts: found 'xyz', expected one of comma, brackets"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name, message):
    with pytest.raises(InputError) as refused:
        find_part(GROUP, BUILTIN, name)
    assert str(refused.value) == message


def test_the_message_names_the_option_that_named_the_part():
    with pytest.raises(InputError, match=r"^--engine: found 'xyz'"):
        find_part(GROUP, BUILTIN, "xyz", where="--engine")
