"""The root command: no heavy import before the verb is known, and readable errors."""

import ast
import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest

from pitlm.cli.main import ENVIRONMENT, EXTRAS, VERBS, LazyGroup, Verb, load_verb, main, pit
from pitlm.core.errors import InputError

HEAVY = {"torch", "transformers", "trl", "peft", "pydantic", "numpy", "scipy", "datasets", "matplotlib", "rich"}


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pitlm.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Adds a verb `stub` that runs a given function."""

    def add(work: Callable[[], object]) -> None:
        module = ModuleType("pitlm.cli.stub")
        module.stub = click.command()(lambda: work())  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pitlm.cli.stub", module)
        monkeypatch.setitem(VERBS, "stub", Verb("A stub.", "nowhere:nothing"))

    for name in ENVIRONMENT:  # main() sets these for the process; restore the old values
        monkeypatch.setenv(name, os.environ.get(name, ENVIRONMENT[name]))
    return add


def raising(error: BaseException) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def imported_by(*arguments: str) -> set[str]:
    """The modules that a process has imported at its end."""
    script = f"""
import atexit, json, sys
from pitlm.cli.main import main
atexit.register(lambda: print("\\n" + json.dumps(sorted(sys.modules))))
main({list(arguments)!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "pitlm.cli.main" in modules
    return modules


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"], ["recipes"], ["run", "--help"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    assert HEAVY.isdisjoint(imported_by(*arguments))


@pytest.mark.parametrize("name", list(VERBS))
def test_the_help_of_a_verb_imports_at_most_the_sections(name: str) -> None:
    assert (HEAVY - {"pydantic"}).isdisjoint(imported_by(name, "--help"))


def test_help_lists_every_verb_and_imports_none() -> None:
    done = call("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]
    assert listed == list(VERBS)


@pytest.mark.parametrize("name", list(VERBS))
def test_verb_loads_with_help_and_examples(name: str) -> None:
    command = load_verb(name)
    assert isinstance(command, click.Command)
    assert command.help
    family = [command, *(command.commands.values() if isinstance(command, click.Group) else [])]
    assert any("pit " + name in f"{member.epilog}{member.help}" for member in family)


@pytest.mark.parametrize("name", list(VERBS))
def test_the_work_of_a_verb_lives_where_it_is_said_to(name: str) -> None:
    module, _, function = VERBS[name].work.partition(":")
    file = Path(__file__).parents[2] / "src" / (module.replace(".", "/") + ".py")
    defined = {getattr(node, "name", None) for node in ast.parse(file.read_text(encoding="utf-8")).body}
    assert function in defined
    verb = file.parents[1] / "cli" / f"{name}.py"
    assert re.search(rf"\b{function}\b", verb.read_text(encoding="utf-8")), "the verb does not call it"


def test_unknown_verb_is_a_usage_error_with_a_suggestion() -> None:
    done = call("recipse")
    assert done.returncode == 2
    assert "recipes" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_recipe_is_one_line_on_stderr() -> None:
    done = call("recipes", "show", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: nonsense: ")
    assert len(done.stderr.splitlines()) == 1


def test_recipes_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from pitlm.core.packaged_recipes import RECIPES, recipe_names

    assert exit_code("recipes") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()
    assert exit_code("recipes", "show", "quickstart") == 0
    assert capsys.readouterr().out == (RECIPES / "quickstart.yaml").read_text(encoding="utf-8")


def test_input_error_is_shown_without_traceback(
    stub: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub(raising(InputError("pairs.jsonl:3: found nothing, expected a pair")))
    assert exit_code("stub") == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "Error: pairs.jsonl:3: found nothing, expected a pair\n")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left"),
        (errno.EACCES, "Permission denied"),
        (errno.EPERM, "not permitted"),
        (errno.EROFS, "Read-only"),
        (errno.ENOTDIR, "Not a directory"),
        (errno.ENOENT, "No such file"),
    ],
)
def test_file_system_errors_name_the_path(
    number: int, words: str, stub: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub(raising(OSError(number, os.strerror(number), "some/where.json")))
    assert exit_code("stub") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: some/where.json: ")
    assert words in lines[0]


def test_a_full_disk_is_recognised_in_another_library_s_error(
    stub: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub(raising(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")))
    assert exit_code("stub") == 2
    assert capsys.readouterr().err == "Error: No space left on device\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("a bug"), ValueError("no")])
def test_other_errors_keep_their_traceback(error: Exception, stub: Callable[[Callable[[], object]], None]) -> None:
    stub(raising(error))
    with pytest.raises(type(error)):
        main(["stub"])


def test_interrupt_says_how_to_go_on(
    stub: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub(raising(KeyboardInterrupt()))
    assert exit_code("stub") == 130
    assert "run the same command again" in capsys.readouterr().err


def test_closed_pipe_is_silent() -> None:
    script = "import sys; from pitlm.cli.main import main; main(['recipes', 'show', 'quickstart'])"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_environment_of_the_user_wins(
    stub: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    stub(lambda: seen.update(os.environ))
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    assert exit_code("stub") == 0
    assert seen["TRANSFORMERS_VERBOSITY"] == "info"
    assert seen["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_root_is_lazy() -> None:
    assert isinstance(pit, LazyGroup)


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("scipy.stats", "evaluate"), ("fastapi", "serve")])
def test_a_library_of_an_extra_that_is_missing_is_named_with_its_extra(stub, capsys, module, extra) -> None:
    stub(raising(ModuleNotFoundError(f"No module named '{module}'", name=module)))
    assert exit_code("stub") == 2
    assert f"pip install 'pitlm[{extra}]'" in capsys.readouterr().err


def test_a_module_of_ours_that_is_missing_keeps_its_traceback(stub) -> None:
    stub(raising(ModuleNotFoundError("No module named 'pitlm.gone'", name="pitlm.gone")))
    with pytest.raises(ModuleNotFoundError):
        main(["stub"])


def test_each_extra_of_the_package_is_known() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {"sklearn": "scikit-learn", "prometheus_client": "prometheus-client"}
    for extra, modules in EXTRAS.items():
        wanted = {re.split(r"[\[<>=]", line)[0] for line in declared["optional-dependencies"][extra]} - {"pitlm"}
        assert wanted <= {names.get(module, module) for module in modules}, extra


def test_a_polite_kill_says_how_to_go_on():
    script = (
        "import click, time; from pitlm.cli import main as m\n"
        "m.load_verb = lambda name: click.Command(name, callback=lambda: (print('on', flush=True), time.sleep(60)))\n"
        "m.main(['doctor'])"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "on\n"
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip() == "Interrupted; run the same command again to go on."


def test_a_closed_output_is_no_fault():
    done = subprocess.run(f"{sys.executable} -m pitlm.cli.main recipes >&-", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_that_knows_only_ascii_gets_escapes(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "p", "chosen": "ü – 価", "rejected": "b"}\n' * 3, encoding="utf-8"
    )
    how = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "pitlm.cli.main", "data", "inspect", str(tmp_path / "pairs.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, env=how)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xfc \\u2013" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes", "show", b"\xff"],
        ["run", "quickstart", "--out", b"{tmp}/\xff"],
        ["data", "prepare", b"{tmp}/\xff.jsonl", "--out", b"{tmp}/\xff"],
        ["evaluate", "{tmp}/circle"],
        ["doctor", "quickstart", "--json", "{tmp}/circle"],
        ["data", "prepare", "{tmp}/pairs.jsonl", "--out", "{tmp}/circle"],
        ["run", "quickstart", "--out", "{tmp}/circle"],
    ],
)
def test_links_in_a_circle_and_names_that_are_not_utf8_are_one_message(tmp_path, arguments):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    told = [
        a.replace(b"{tmp}", os.fsencode(tmp_path)) if isinstance(a, bytes) else a.format(tmp=tmp_path)
        for a in arguments
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pitlm.cli.main",
            *told,
            *(["--until", "data", "--set", "data.world=null"] if "run" in told else []),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
