"""Every kind of source gives the same rows, and each row knows its origin."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pitlm.core.errors import InputError
from pitlm.data import readers
from pitlm.data.readers import RawRow, Unreadable, read_rows

ROWS = [
    {"prompt": "Wie geht's?", "chosen": "good\nthanks", "rejected": 'bad, "very"'},
    {"prompt": "two", "chosen": "2 \u2028 ok", "rejected": "22"},
]


def write(path: Path) -> Path:
    """Write ROWS in the format that the file name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    elif name.endswith(".json"):
        text = json.dumps({"data": ROWS} if "wrapped" in name else ROWS)
    elif name.endswith(".csv"):
        with open(path, "w", newline="", encoding="utf-8") as handle:
            out = csv.DictWriter(handle, fieldnames=list(ROWS[0]))
            out.writeheader()
            out.writerows(ROWS)
        return path
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        return path
    raw = text.encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "wrapped.json", "a.json.gz", "a.csv", "a.parquet"])
def test_each_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = list(read_rows(write(tmp_path / name)))
    assert [row.data for row in rows] == ROWS
    assert {row.file for row in rows} == {str(tmp_path / name)}


def test_lines_are_those_an_editor_shows(tmp_path: Path) -> None:
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text('{"a": 1}\n\n  \n{"a": 2}\n')
    assert [row.line for row in read_rows(jsonl)] == [1, 4]
    # the first record fills lines 2 and 3, because its cell holds a line break
    assert [row.line for row in read_rows(write(tmp_path / "a.csv"))] == [2, 4]


def test_byte_order_marks_of_spreadsheets_are_removed(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.json"):
        path = write(tmp_path / name)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert [row.data for row in read_rows(path)] == ROWS


def test_json_lines_named_json_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl").rename(tmp_path / "b.json")
    assert list(read_rows(path)) == [RawRow(str(path), 1, ROWS[0]), RawRow(str(path), 2, ROWS[1])]


def test_long_csv_cells_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("chosen\n" + "x" * 200_000 + "\n")
    [row] = read_rows(path)
    assert row.data == {"chosen": "x" * 200_000}


def test_folders_are_read_in_order_without_what_is_not_data(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    write(tmp_path / "b" / "deep" / "z.parquet")
    write(tmp_path / "c.csv")
    write(tmp_path / "a.jsonl")
    for ignored in ("README.md", ".hidden.jsonl", ".cache/a.jsonl", "dataset_info.json", "summary.json"):
        (tmp_path / ignored).write_text("not data")
    files = [row.file for row in read_rows(str(tmp_path))]
    assert files[::2] == [str(tmp_path / name) for name in ("a.jsonl", "b/deep/z.parquet", "c.csv")]
    assert len(files) == 6


def test_a_folder_with_nothing_readable_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"no data files \(1 others\), expected \.jsonl"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"a": 1', "broken JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "broken JSON (nested too deeply)"),
        (b'{"a": ' + b"1" * 5000 + b"}", "broken JSON"),
    ],
)
def test_a_broken_line_is_marked_and_the_rest_is_read(tmp_path: Path, line: bytes, found: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, broken, last = read_rows(path)
    assert (first.data, last.data) == ({"a": 1}, {"a": 2})
    assert isinstance(broken.data, Unreadable)
    assert found in broken.data.found
    assert broken.line == 2


def test_ragged_csv_rows_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\na,b\nc,d,e\n")
    ragged, whole = read_rows(path)
    assert ragged == RawRow(str(path), 2, Unreadable("2 cells", "3, as in the header", "a,b"))
    assert whole.data == {"prompt": "c", "chosen": "d", "rejected": "e"}


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.json", b'[\n{"a": 1},\n{"a": }\n]', ["a.json:3", "broken JSON", "a list of objects"]),
        ("a.json", b'{"rows": []}', ["a.json", "without a list 'data'"]),
        ("a.json", b"3", ["a.json", "found int", "a list of objects"]),
        ("a.json", b"\xff", ["a.json", "not UTF-8"]),
        ("a.json", b"", ["a.json", "broken JSON"]),
        ("a.csv", b"a,b\n1,\xff\n", ["a.csv", "not UTF-8"]),
        ("a.csv", b'a,b\n1,2\n"never closed,3\n4,5\n', ["a.csv:3", "broken CSV"]),
        ("a.jsonl.gz", b"plain text", ["a.jsonl.gz", "damaged gzip"]),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-12], ["a.jsonl.gz", "damaged gzip"]),
        ("a.csv.gz", b"plain text", ["a.csv.gz", "damaged gzip"]),
        ("a.parquet", b"plain text", ["a.parquet", "cannot load a parquet file"]),
        ("a.txt", b"plain text", ["a.txt", "'.txt'", "expected .jsonl"]),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_rows(tmp_path / name))
    for part in parts:
        assert part in str(caught.value)


def test_a_parquet_file_cut_short_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a\.parquet: cannot load a parquet file"):
        list(read_rows(path))


def test_jsonl_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000, mtime=0)[:-12])
    assert next(iter(read_rows(path))).data == {"a": 1}  # reading has not reached the damage at the end


@pytest.mark.parametrize("source", ["missing.jsonl", "no/such/folder", "{here}/typo", "nothing"])
def test_a_missing_path_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="no such file or folder"):
        list(read_rows(source.format(here=tmp_path)))


def test_hub_names_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, object]] = []

    def load_dataset(name: str, **options: object) -> list[dict[str, str]]:
        asked.append((name, options))
        return [dict(ROWS[0])]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert list(read_rows("org/some-name")) == [RawRow("org/some-name:train", 1, ROWS[0])]
    assert list(read_rows("org/some-name:test[:10%]")) == [RawRow("org/some-name:test[:10%]", 1, ROWS[0])]
    assert asked == [("org/some-name", {"split": "train"}), ("org/some-name", {"split": "test[:10%]"})]


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **_: object) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nlong story")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(InputError) as caught:
        list(read_rows("org/name"))
    assert "org/name: this path does not exist here" in str(caught.value)
    assert "Couldn't reach" in str(caught.value)
    assert "long story" not in str(caught.value)


PAIRS_READER = """
from pitlm.data.readers import Unreadable, opened


def read(path):
    with opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            cells = line.decode().rstrip("\\n").split(" | ")
            row = dict(zip(("prompt", "chosen", "rejected"), cells))
            yield number, row if len(cells) == 3 else Unreadable(f"{len(cells)} cells", "3", line.decode())
"""


def test_another_package_adds_a_reader(tmp_path: Path) -> None:
    """A reader is a function and a line in the package's entry points. The command line then reads its files, gzipped
    too."""
    metadata = tmp_path / "site" / "pairs_reader-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pairs-reader\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[pitlm.readers]\npairs = pairs_reader:read\n")
    (tmp_path / "site" / "pairs_reader.py").write_text(PAIRS_READER)
    (tmp_path / "in").mkdir()
    text = "".join(f"question {n} | yes {n} | no\n" for n in range(7)).encode()
    (tmp_path / "in" / "a.pairs").write_bytes(text)
    (tmp_path / "in" / "b.pairs.gz").write_bytes(gzip.compress(text, mtime=0))
    (tmp_path / "in" / "c.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (tmp_path / "bad.pairs").write_text("question | yes | no\nquestion | yes\n")
    (tmp_path / "a.txt").write_text("text")

    def inspect(source: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "pitlm.cli.main", "data", "inspect", source]
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = inspect("in")
    assert done.returncode == 0, done.stderr
    assert "Read 15 rows: 15 kept" in done.stdout
    bad = inspect("bad.pairs")
    assert (bad.returncode, bad.stderr) == (2, "Error: bad.pairs:2: found 2 cells, expected 3\n")
    other = inspect("a.txt")
    assert other.returncode == 2
    assert "expected .jsonl, .json, .csv (each also .gz), .parquet or .arrow or .pairs" in other.stderr


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.csv.gz"])
def test_a_line_without_end_is_refused_before_it_is_read(tmp_path, monkeypatch, name):
    """A gzip file of a few kilobytes can hold a line of gigabytes."""
    monkeypatch.setattr(readers, "LONGEST", 1000)
    content = b"prompt,chosen,rejected\n" + b"\x00" * 5000
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=r"a\.\S+:2: found 1,000 bytes or more, expected a shorter line"):
        list(read_rows(tmp_path / name))


def test_a_json_file_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LARGEST", 1000)
    (tmp_path / "a.json").write_text("[" + "1," * 1000 + "1]")
    with pytest.raises(InputError, match=r"a\.json: found more than 1,000 bytes of JSON, expected JSON lines"):
        list(read_rows(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a"])
def test_a_pipe_and_a_device_are_no_data(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / "zero.jsonl"):
        with pytest.raises(InputError, match="found a device or a pipe, expected a file or a folder"):
            list(read_rows(path))


def test_text_of_a_parquet_file_that_is_not_utf_8_is_one_message(tmp_path):
    array = pyarrow.Array.from_buffers(
        pyarrow.string(),
        1,
        [None, pyarrow.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pyarrow.py_buffer(b"\xff\xfe")],
    )
    pyarrow.parquet.write_table(pyarrow.table({"prompt": array}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: cannot load a parquet file: 'utf-8' codec"):
        list(read_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_csv_file_may_have_any_line_ends(tmp_path, end):
    text = end.join(["prompt,chosen,rejected", 'q,"two' + end + 'lines",b', "q2,a,b", ""])
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8-sig"))
    rows = [row.value() for row in read_rows(tmp_path / "a.csv")]
    assert rows == [
        {"prompt": "q", "chosen": f"two{end}lines", "rejected": "b"},
        {"prompt": "q2", "chosen": "a", "rejected": "b"},
    ]


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,chosen,rejected\na,b,lost,c\n")
    with pytest.raises(InputError, match=r"a\.csv:1: found two columns 'chosen', expected one of each name"):
        list(read_rows(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected,,\na,b,c,lost,d\n")
    with pytest.raises(InputError, match=r"b\.csv:1: found two columns '', expected one of each name"):
        list(read_rows(tmp_path / "b.csv"))
