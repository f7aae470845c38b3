"""Names: each class, file and public function has one meaning; tests use what is public; nothing is left unused."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import pitlm

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pitlm"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PUBLIC_TEXTS = [ROOT / "README.md", ROOT / "PAPER.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def twice(names: Iterator[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_no_two_classes_share_a_name() -> None:
    assert twice(node.name for path in MODULES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)) == []


def test_no_two_modules_share_a_file_name() -> None:
    """A verb's module on the command line may have the name of the module that does its work."""
    verbs = PACKAGE / "cli"
    assert twice(path.name for path in MODULES if path.name != "__init__.py" and path.parent != verbs) == []


def imports(path: Path) -> set[str]:
    """The modules of the package that a module imports, also inside functions; not those for type checkers alone."""
    known = {dotted(module) for module in MODULES}
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=other):
                for child in other:
                    visit(child)
            case ast.Import(names=aliases):
                found.update(alias.name for alias in aliases)
            case ast.ImportFrom(module=str(module), names=aliases):
                found.update({module, *(f"{module}.{alias.name}" for alias in aliases)})
            case _:
                for child in ast.iter_child_nodes(node):
                    visit(child)

    visit(tree(path))
    return found & known - {dotted(path), "pitlm"}


def test_no_module_imports_itself_in_a_circle() -> None:
    TopologicalSorter({dotted(path): imports(path) for path in MODULES}).prepare()  # raises CycleError, with the circle


def test_no_module_is_callable() -> None:
    """A name that is both a module and a function depends on what was imported before."""
    modules = {dotted(path).removeprefix("pitlm.") for path in MODULES}
    assert modules.isdisjoint(pitlm.__all__)
    assert [dotted(path) for path in MODULES if "sys.modules[__name__]" in path.read_text(encoding="utf-8")] == []


def there(module: str, name: str = "") -> bool:
    """Whether the module, and the name in it, can be imported. A library of an extra that is missing is no fault."""
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        return (error.name or "pitlm").split(".")[0] != "pitlm"
    return not name or hasattr(found, name) or find_spec(f"{module}.{name}") is not None


def test_every_module_can_be_imported() -> None:
    assert [name for name in map(dotted, MODULES) if not there(name)] == []


def test_every_import_of_the_package_is_there() -> None:
    """Also inside functions, in benchmarks and examples, and in strings such as ``module:name``: mypy sees not all."""
    users = [path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    gone = []
    for path in [*MODULES, *users]:
        for node in ast.walk(tree(path)):
            match node:
                case ast.ImportFrom(module=str(module), names=aliases) if module.split(".")[0] == "pitlm":
                    named = [(module, alias.name) for alias in aliases]
                case ast.Constant(value=str(text)) if match := re.fullmatch(r"(pitlm[\w.]*):(\w+)[\w.]*", text):
                    named = [(match[1], match[2])]
                case _:
                    continue
            gone += [
                f"{path.relative_to(ROOT)}:{node.lineno} {where}: {name}"
                for where, name in named
                if not there(where, name)
            ]
    assert gone == []


LIBRARIES = {"_get_per_token_logps_and_entropies", "_generate_single_turn", "_name_or_path"}
"""Private names of TRL and transformers that the package overrides, and that contract tests hold."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in LIBRARIES


@cache
def private_names() -> frozenset[str]:
    """Every name with an underscore that the package defines, also on objects."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(tree(path)):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    found.add(name)
    return frozenset(filter(is_private, found))


def private_uses(module: ast.Module) -> Iterator[str]:
    """Private names of the package that a test imports, reads from an object, or names to ``setattr``."""
    for node in ast.walk(module):
        match node:
            case ast.ImportFrom(module=str(source), names=aliases) if source.split(".")[0] == "pitlm":
                yield from (f"{node.lineno} {alias.name}" for alias in aliases if is_private(alias.name))
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if name in private_names():
                yield f"{node.lineno} {name}"
            case ast.Call(args=arguments):
                texts = (a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str))
                yield from (f"{node.lineno} {text}" for text in texts if text.split(".")[-1] in private_names())


def test_tests_use_only_what_is_public() -> None:
    found = [f"{path.relative_to(ROOT)}:{use}" for path in TESTS for use in private_uses(tree(path))]
    assert found == []


def used_names(path: Path) -> Iterator[str]:
    """Names that a module reads, imports, or names in a string as ``module:name``; docstrings and comments are none."""
    for node in ast.walk(tree(path)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                yield name
            case ast.ImportFrom(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.Constant(value=str(text)) if match := re.fullmatch(r"pitlm[\w.]*:(\w+)(?:\.\w+)*", text):
                yield match[1]


def test_what_nothing_uses_is_public_and_documented() -> None:
    """What neither the package nor a benchmark nor the example uses is for users, and then a document names it."""
    users = [path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in [*MODULES, *users] for name in used_names(path)}
    used |= set(re.findall(r"pitlm[\w.]*:(\w+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    documented = set(re.findall(r"\w+", " ".join(path.read_text(encoding="utf-8") for path in PUBLIC_TEXTS)))
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    unused = [
        f"{dotted(path)}:{node.name}"
        for path in MODULES
        for node in tree(path).body
        if isinstance(node, definitions) and not node.name.startswith("_") and node.name not in used | documented
    ]
    assert unused == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from pitlm.models.loading import _load", ["1 _load"]),
        ("import pitlm.models.loading as loading\nloading._load(1)", ["2 _load"]),
        ("monkeypatch.setattr(loading, '_load', None)", ["1 _load"]),
        ("class Fake:\n  def go(self):\n    return self._load", []),
        ("model._not_a_name_of_ours", []),
    ],
)
def test_a_private_use_is_seen(text: str, found: list[str]) -> None:
    assert list(private_uses(ast.parse(text))) == found
