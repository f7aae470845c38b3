"""The digest of a run's inputs."""

import os
import shutil

import pytest

import pitlm.io.digest as module
from pitlm.core.errors import InputError
from pitlm.io.digest import digest


def test_what_is_not_here_has_no_digest(tmp_path):
    assert digest(None) is None
    assert digest("organisation/name") is None
    assert digest(tmp_path / "gone") is None


def test_contents_and_names_count_and_the_place_does_not(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "one").write_text("1")
    first = digest(folder)
    shutil.copytree(folder, tmp_path / "b")
    assert digest(tmp_path / "b") == first == digest(str(folder) + "/")
    (folder / "one").write_text("2")
    second = digest(folder)
    (folder / "one").rename(folder / "two")
    assert len({first, second, digest(folder)}) == 3


def test_of_weights_the_size_and_both_ends_count(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WHOLE", 100)
    monkeypatch.setattr(module, "PART", 10)
    file = tmp_path / "model.safetensors"

    def of(text):
        file.write_text(text)
        return digest(file, sample=True), digest(file)

    base, begin, middle, end, longer = (
        of(t) for t in ("a" * 200, "b" + "a" * 199, "a" * 99 + "b" + "a" * 100, "a" * 199 + "b", "a" * 201)
    )
    assert len({x[1] for x in (base, begin, middle, end, longer)}) == 5
    assert len({x[0] for x in (base, begin, end, longer)}) == 4
    assert middle[0] == base[0]


def test_a_pipe_is_refused_where_reading_it_would_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pairs.jsonl")
    with pytest.raises(InputError, match=r"pairs\.jsonl"):
        digest(tmp_path / "pairs.jsonl")
