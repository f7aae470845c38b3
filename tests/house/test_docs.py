"""Everything that the documents refer to exists: paths, names in the code, tests, make targets, verbs."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import click
import pytest

from pitlm.cli.main import VERBS, load_verb
from pitlm.reproduce.experiment import experiment_names
from pitlm.reproduce.page import tables

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pitlm"
DOCUMENTS = [
    "README.md",
    "PAPER.md",
    "LOG.md",
    "CONTRIBUTING.md",
    "docs/bench.md",
    "docs/distributed.md",
    "docs/engines.md",
    "docs/export.md",
    "docs/frameworks.md",
    "docs/further-results.md",
    "docs/rate.md",
    "docs/real.md",
    "docs/results.md",
    "docs/scale.md",
    "docs/serve.md",
    "docs/usage.md",
]
HOW_TO = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/bench.md",
    "docs/distributed.md",
    "docs/engines.md",
    "docs/export.md",
    "docs/frameworks.md",
    "docs/further-results.md",
    "docs/rate.md",
    "docs/real.md",
    "docs/results.md",
    "docs/scale.md",
    "docs/serve.md",
    "docs/usage.md",
]

FOLDERS = ("src/", "tests/", "benchmarks/", "docs/", "examples/", "recipes/", ".ci/")
SOURCES = (".py", ".md", ".yaml", ".yml", ".toml", ".j2")
# Paths that a command creates or a reader replaces; they are not in the tree.
PLACEHOLDERS = ("runs/", "build/", "path/", "my", "your")


def text_of(document: str) -> str:
    path = ROOT / document
    assert path.is_file(), f"{document} is missing"
    return path.read_text(encoding="utf-8")


def code_of(text: str) -> tuple[list[str], list[str]]:
    """Return the backticked spans of a document, and the lines of its fenced blocks."""
    blocks: list[str] = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose), [line for block in blocks for line in block.splitlines()]


def is_path(span: str) -> bool:
    if not re.fullmatch(r"[\w.\-/]+", span) or span.startswith(PLACEHOLDERS):
        return False
    return span.startswith(FOLDERS) or ("/" in span and span.endswith(SOURCES)) or span.endswith(".md")


def exists(span: str) -> bool:
    return (ROOT / span).exists() or (PACKAGE / span).exists()


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return every name that a module defines, with dots below classes. Parse the file: importing would load torch."""
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(prefix + name)
                case ast.ClassDef(name=name, body=inner):
                    found.add(prefix + name)
                    visit(inner, f"{prefix}{name}.")
                case ast.Assign(targets=targets):
                    found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)
                case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                    found.update(prefix + (alias.asname or alias.name) for alias in aliases)
                case ast.If(body=inner, orelse=other):
                    visit([*inner, *other], prefix)

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def module_file(dotted: str) -> Path | None:
    """Return the file of ``pitlm.a.b`` or ``a.b``; None if there is none."""
    parts = dotted.removeprefix("pitlm").strip(".").split(".")
    base = PACKAGE.joinpath(*(part for part in parts if part))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def resolves(dotted: str) -> bool:
    """Return whether ``pitlm.module.Class.method`` names a module or a definition in a module."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        path = module_file(".".join(parts[:cut]))
        if path is not None:
            return cut == len(parts) or ".".join(parts[cut:]) in names_in(path)
    return False


@cache
def entry_point_groups() -> frozenset[str]:
    """The groups in which other packages name their parts, as the package's own code spells them."""
    sources = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    return frozenset(
        name for text in sources for name in re.findall(r"(?:GROUP = |_part\(|_names\()\"(pitlm\.\w+)\"", text)
    )


def broken_reference(span: str) -> bool:
    """Return whether a span refers to a name that the code lacks; False if the span is no reference."""
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    if match := re.fullmatch(r"([\w./\-]+\.py)::?([\w.:]+?)(?:\[.*\])?", span):
        path = next((base / match[1] for base in (ROOT, PACKAGE) if (base / match[1]).is_file()), None)
        return path is None or match[2].replace("::", ".") not in names_in(path)
    if match := re.fullmatch(r"((?:\w+\.)*\w+):([A-Za-z_][\w.]*)", span):
        first = match[1].removeprefix("pitlm.").split(".")[0]
        return first in packages and not ((path := module_file(match[1])) and match[2] in names_in(path))
    if match := re.fullmatch(r"(pitlm(?:\.\w+)+)(?:\(.*\))?", span):
        return not resolves(match[1]) and match[1] not in entry_point_groups()
    return False


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    text = text_of(document)
    spans, _ = code_of(text)
    links = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [span for span in spans if is_path(span) and not exists(span)]
    missing += [link for link in links if link and not (ROOT / document).parent.joinpath(link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_in_the_code_exist(document: str) -> None:
    spans, _ = code_of(text_of(document))
    assert [span for span in spans if broken_reference(span)] == []


@pytest.mark.parametrize("document", HOW_TO)
def test_make_targets_exist(document: str) -> None:
    spans, block_lines = code_of(text_of(document))
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    families = tuple(re.findall(r"^([a-z][\w-]*-)%:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for line in spans + block_lines for name in re.findall(r"(?:^|[\s$;&])make ([a-z][\w-]*)", line)}
    assert {name for name in named if not name.startswith(families)} <= targets


@pytest.mark.parametrize("document", HOW_TO)
def test_verbs_exist(document: str) -> None:
    spans, block_lines = code_of(text_of(document))
    unknown = []
    for line in spans + block_lines:
        for verb, following in re.findall(r"(?:^|[\s$/;&|])pit ([a-z]\w*)(?: ([a-z]\w*))?", line.partition(" #")[0]):
            if verb not in VERBS:
                unknown.append(f"pit {verb}")
            elif following and isinstance(command := load_verb(verb), click.Group):
                unknown += [f"pit {verb} {following}"] if following not in command.commands else []
    assert unknown == []


@pytest.mark.parametrize("document", ["PAPER.md", *HOW_TO])
def test_experiments_exist(document: str) -> None:
    spans, block_lines = code_of(text_of(document))
    named = {
        name for line in spans + block_lines for name in re.findall(r"pit reproduce ([a-z][\w-]*)(?![\w.-])", line)
    }
    assert named <= set(experiment_names())


def test_the_page_of_results_shows_the_stored_figures() -> None:
    stored = json.loads(text_of("docs/results.json"))
    assert text_of("docs/results.md") == tables(stored, "results.pictures")
    assert list(stored) == experiment_names()
    assert all((ROOT / "docs" / "results.pictures" / f"{name}.svg").is_file() for name in stored)


def test_engines_are_called_tested_only_in_versions_that_ran() -> None:
    """ "Tested with NAME VERSION" stands where `make real` ran that version, and it worked."""
    rows = re.findall(r"^\| (\S+) \| (\S+) \| .* \| works \|$", text_of("docs/real.md"), re.MULTILINE)
    ran = {(name.lower(), version) for name, version in rows}
    examples = [str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("*.py")]
    for document in [*HOW_TO, *examples]:
        claims = re.findall(r"[Tt]ested\s+with\s+([\w.-]+)\s+(\d[\w.]*\w)", text_of(document))
        assert {(name.lower(), version) for name, version in claims} <= ran, document


def section(document: str, heading: str) -> str:
    """The text under a heading, to the next heading."""
    return text_of(document).partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_readme_fits_on_three_screens() -> None:
    assert len(text_of("README.md").splitlines()) <= 3 * 50


def test_readme_shows_the_rooms_of_the_package() -> None:
    block = code_of(section("README.md", "The house"))[1]
    shown = [line.split()[0] for line in block if line.startswith("  ")]
    rooms = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/*.[py][ya]*")}
    assert sorted(shown) == sorted(rooms - {"__pycache__"})
    assert all(len(line.split()) > 2 for line in block if line.startswith("  "))


def test_readme_says_where_things_are() -> None:
    """Each answer of the table is one symbol in one file of the package."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section("README.md", "Where do I find"), re.MULTILINE)[2:]
    assert len(rows) >= 9
    for question, answer in rows:
        span = re.fullmatch(r"`(src/pitlm/[\w/]+\.py:[\w.]+)`", answer)
        assert span, question
        assert not broken_reference(span[1]), question


def test_the_checks_above_can_fail() -> None:
    """The checks recognise references and find broken ones."""
    assert not broken_reference("pitlm.core.equations:gap_loss")
    assert not broken_reference("core.equations:gap_loss")
    assert not broken_reference("pitlm.core.errors.InputError.at")
    assert not broken_reference("pitlm.improve")
    assert not broken_reference("tests/house/test_docs.py::test_verbs_exist")
    assert not broken_reference("src/pitlm/core/equations.py:gap_loss")
    assert not broken_reference("host:port")
    assert broken_reference("pitlm.core.equations:nothing")
    assert broken_reference("core.nothing:gap_loss")
    assert broken_reference("pitlm.core.errors.InputError.nothing")
    assert broken_reference("pitlm.nothing")
    assert broken_reference("tests/house/test_docs.py::test_nothing")
    assert is_path("src/pitlm/nothing.py")
    assert is_path("core/equations.py")
    assert exists("core/equations.py")
    assert not is_path("runs/quickstart/config.yaml")
    assert not exists("src/pitlm/nothing.py")
