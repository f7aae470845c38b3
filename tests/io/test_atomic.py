"""A file has either its old or its complete new content."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pitlm.core.errors import InputError
from pitlm.engines.reply_cache import ReplyCache
from pitlm.io.atomic import atomic_folder, atomic_writer, read_json_lines, write_json_lines, write_text
from pitlm.judge.votes import Votes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, error: BaseException) -> None:
    with atomic_writer(path) as file:
        file.write("new, the first half")
        file.flush()
        raise error


def test_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"):
        write_half(path, RuntimeError("half way"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_failure_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "a.txt", KeyboardInterrupt())
    assert names(tmp_path) == []


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(path, "new")
    assert caught.value.filename == str(path)  # the command line shows it
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_that_is_not_unicode_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a character: \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_parents_are_made_and_text_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "ä\r\n\u2028\0 end")
    assert path.read_bytes() == "ä\r\n\u2028\0 end".encode()


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    before = os.umask(0o022)
    try:
        write_text(path, "shared")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    script = f"""
import pathlib, time
from pitlm.io.atomic import atomic_writer
with atomic_writer(pathlib.Path({str(path)!r})) as file:
    file.write("half"); file.flush(); print("ready", flush=True); time.sleep(3600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"


def test_a_reader_beside_a_writer_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = ("a" * 100_000, "b" * 100_000)
    write_text(path, texts[0])
    script = f"""
import pathlib
from pitlm.io.atomic import write_text
for n in range(60):
    write_text(pathlib.Path({str(path)!r}), "ab"[n % 2] * 100_000)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as writer:
        end = time.monotonic() + 30
        while writer.poll() is None and time.monotonic() < end:
            assert path.read_text() in texts
    assert writer.returncode == 0


def make_half(path: Path, error: BaseException) -> None:
    with atomic_folder(path) as folder:
        (folder / "a.txt").write_text("new, the first half")
        raise error


def test_a_folder_is_the_old_one_or_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError, match="half way"):
        make_half(path, RuntimeError("half way"))
    assert names(path.parent) == []
    for text in ("old", "new"):
        with atomic_folder(path) as folder:
            assert names(folder) == []
            (folder / f"{text}.txt").write_text(text)
        assert (names(path.parent), names(path)) == (["out"], [f"{text}.txt"])
    with pytest.raises(KeyboardInterrupt):
        make_half(path, KeyboardInterrupt())
    assert (names(path.parent), names(path)) == (["out"], ["new.txt"])


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "out", Path.rename
    with atomic_folder(path) as folder:
        (folder / "old.txt").write_text("old")

    def full(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.ENOSPC, "the disk is full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="the disk is full"), atomic_folder(path) as folder:
        (folder / "new.txt").write_text("new")
    assert (names(tmp_path), names(path)) == (["out"], ["old.txt"])


def test_two_at_once_leave_one_of_them_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "out", Path.rename
    with atomic_folder(path) as folder:
        (folder / "old.txt").write_text("old")

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp" and not path.exists():  # another process puts its folder there first
            path.mkdir()
            (path / "other.txt").write_text("of the other")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as folder:
        (folder / "new.txt").write_text("new")
    assert (names(tmp_path), names(path)) == (["out"], ["other.txt"])


def test_lines_of_json_are_read_as_they_were_written_whatever_a_text_holds(tmp_path: Path) -> None:
    rows = [{"text": "two\nlines, \u2028 and \x85"}, {"text": ""}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows


def test_a_link_stays_a_link_and_only_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real.txt")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        before = other.stat().st_mode
        with pytest.raises(InputError, match="found no regular file, expected a file"):
            write_text(other, "new")
        assert other.stat().st_mode == before


@pytest.mark.parametrize("make", [ReplyCache, Votes])
def test_files_of_votes_and_replies_are_their_owners_alone(make, tmp_path):
    before = os.umask(0o022)
    try:
        make(tmp_path / "new.sqlite")
        (tmp_path / "shared.sqlite").touch(mode=0o640)  # somebody chose this
        make(tmp_path / "shared.sqlite")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("shared.sqlite") == 0o640
    assert {mode for name, mode in modes.items() if name.startswith("new")} == {0o600}
