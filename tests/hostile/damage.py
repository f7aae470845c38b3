"""Ways to damage a file. Each is a pure function of the content and of a source of random numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Bytes = Callable[[random.Random, bytes], bytes]

ODD: list[Any] = [
    None, True, False, 0, -1, 3, 1e308, -1e-320, float("nan"), float("inf"), 10**20, -(10**20), "", " ", "x", "nan", "\x00",
    "\ud800", "\x1b[2J", "‮", "../../etc/passwd", "-", "a" * 100_000, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}},
    [1, "a", None], "2024-99-99", "{{ 1 / 0 }}", "[bold]", [["a"] * 3] * 3,
]  # fmt: skip
"""Values that a field may have instead of its own."""

YAML = [
    "2024-99-99", "2024-11-25", "!!int abc", "!!python/object:os.system", "&a [*a]", "*nowhere", "0x", "0o9", "1:2:3", "~",
    "'", '"', "{", "[" * 5_000, "9" * 5_000, "!!binary '%'", "!!float x", "!!timestamp x", "? a", "<<: 3", "- a", ".nan",
    "-.inf", "1e400", "null", "yes", "|", "> x", "%YAML 9.9", "\t- a", "é\x85", "!!set {a, b}", "!!omap [a: 1]", "@", "`",
]  # fmt: skip
"""Scalars that YAML reads in a way of its own, or not at all."""


def cut_off(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def flipped(rng: random.Random, content: bytes) -> bytes:
    made = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        if made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def inserted(rng: random.Random, content: bytes) -> bytes:
    at, odd = (
        rng.randrange(len(content) + 1),
        [rng.randbytes(9), b"\x00" * 40, b"\xff\xfe", b"{" * 5_000, b"\n\n", b'"', b","],
    )
    return content[:at] + rng.choice(odd) + content[at:]


def replaced(rng: random.Random, content: bytes) -> bytes:
    others = [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"3",
        b'"x"',
        b"\x00" * 4096,
        b"\xef\xbb\xbf",
        b"[" * 50_000,
        b"<html>",
        b"PAR1",
    ]
    return rng.choice([*others, rng.randbytes(999), b'{"a": ' * 20_000, b"a,b\n1\n", b"---\n...\n---\n"])


def shuffled(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines[: rng.randrange(len(lines) + 1)] + [rng.choice(lines)] * 2) if lines else content


def spoilt(rng: random.Random, value: Any) -> Any:
    """A JSON value with one value in it replaced, removed, renamed or doubled."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    made = json.loads(json.dumps(value))
    walk(made)
    if not places:
        return rng.choice(ODD)
    node, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[f"{key}x"] = node.pop(key)
        case 2 if isinstance(node, list):
            node.append(node[key])
        case _:
            node[key] = rng.choice(ODD)
    return made


def spoilt_json(rng: random.Random, content: bytes) -> bytes:
    return json.dumps(spoilt(rng, json.loads(content))).encode()


def spoilt_lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    number = rng.randrange(len(lines))
    lines[number] = json.dumps(spoilt(rng, json.loads(lines[number])))
    return ("\n".join(lines) + "\n").encode()


def spoilt_yaml(rng: random.Random, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    number = rng.choice([n for n, line in enumerate(lines) if ":" in line])
    key, _, _ = lines[number].partition(":")
    value = rng.choice([*YAML, *(json.dumps(odd) for odd in ODD)])
    lines[number] = rng.choice(
        [f"{key}: {value}", f"{value}: 1", f"{lines[number]} {value}", f"{lines[number]}\n{lines[number]}"]
    )
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def spoilt_cells(rng: random.Random, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    number = rng.randrange(len(lines))
    cells = lines[number].split(",")
    cells[rng.randrange(len(cells))] = rng.choice(
        ['"', '"a""', "", "x" * 200_000, "\x00", "\r", "é", '"a\nb"', "[{'role': "]
    )
    lines[number] = ",".join(cells)
    return ("\n".join(lines) + "\n").encode()


ANY: list[Bytes] = [cut_off, flipped, inserted, replaced, shuffled]
BY_SUFFIX: dict[str, list[Bytes]] = {
    ".json": [spoilt_json, spoilt_json, spoilt_json],
    ".jsonl": [spoilt_lines, spoilt_lines, spoilt_lines],
    ".yaml": [spoilt_yaml, spoilt_yaml, spoilt_yaml, spoilt_yaml],
    ".csv": [spoilt_cells, spoilt_cells],
}
"""Damages that know the format of a file, beside those that fit any file."""
