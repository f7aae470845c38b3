"""The budgets that keep the package small, and text that no file may contain."""

import ast
import io
import re
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pitlm"
MODULE_LINES, FUNCTION_LINES = 300, 60
# Lines of code. Split a layer that outgrows its budget; new code makes room for itself.
LAYER_LINES, PACKAGE_LINES = 1_250, 12_500

# Joined from pieces, so that this file passes its own test.
HOSTS = "|".join(name + r"\.(?:org|com)" for name in ("pypi", "pythonhosted", "npmjs", r"download\.pytorch"))
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:work|root)" + r"/",
    "the host of a package registry": rf"\b(?:{HOSTS})\b",
}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def long_functions() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"


def tree() -> list[Path]:
    """Return every tracked or untracked file that git does not ignore. Skip without git, as in an unpacked archive."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_modules_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(lines(path)) for path in PACKAGE.rglob("*.py")}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > MODULE_LINES} == {}


def test_functions_are_short() -> None:
    assert list(long_functions()) == []


def code_lines(text: str) -> int:
    """Count lines of code, without blank lines, comments and docstrings, which nobody should save on."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        for child in getattr(node, "body", None) or [] if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                prose |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for t in tokens if t.type not in nothing for line in range(t.start[0], t.end[0] + 1)}
    return len(code - prose)


def test_package_and_layers_are_small() -> None:
    layers: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        layers[path.relative_to(PACKAGE).parts[0]] += code_lines(path.read_text(encoding="utf-8"))
    assert {layer: count for layer, count in layers.items() if count > LAYER_LINES} == {}
    assert layers.total() <= PACKAGE_LINES


@pytest.mark.parametrize("what", FORBIDDEN)
def test_tree_is_free_of(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tree():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an archive
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []
