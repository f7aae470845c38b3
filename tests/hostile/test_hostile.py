"""Malformed input to every verb: exit code 0 or 2, no traceback, bounded memory and time, no file lost.

Each case damages one file of a small workplace, or gives an odd value to an option, and then calls `pit`. A case is
drawn from its number alone. `make test-hostile` runs all cases; `make test` runs every 40th.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import click
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from damage import ANY, BY_SUFFIX
from forked import call
from tiny_run import RECIPE

from pitlm.cli.main import VERBS, load_verb
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Verdict
from pitlm.engines.reply_cache import ReplyCache
from pitlm.judge.votes import Votes, ballots

SECONDS, MEMORY = 900.0, 1.5e9
"""Limits of one call. The time only ends a hang: no test fails because the machine is busy."""

SAMPLE = 40
EACH = 12
"""How many times each target is damaged."""


class Target(NamedTuple):
    """A command, the file that is damaged, and what the workplace needs besides."""

    command: str
    file: str
    needs: tuple[str, ...] = ()


MODEL = ("model.safetensors", "config.json", "pit.json", "tokenizer.json", "tokenizer_config.json")
STAGES = ("data", "policy-sft", "reward", "judge", "improver-sft", "gap", "rl-0-data", "rl-1-policy", "evaluation")
RUN_FILES = (
    "recipe.json",
    "run.json",
    "evaluation/items.jsonl",
    "evaluation/traces.jsonl",
    "evaluation/verdicts.jsonl",
)
IMPROVE = "improve answers.jsonl -o new.jsonl --improver models/improver --gap models/gap --rounds 1"
JUDGE = "judge answers.jsonl others.jsonl -o new.jsonl --judge"
PAIRS = ("pairs.jsonl", "pairs.json", "pairs.csv", "pairs.parquet", "pairs.jsonl.gz", "ranked.jsonl", "rated.jsonl")
TARGETS = [
    *(Target(f"data inspect {name} --samples 2", name) for name in PAIRS),
    *(Target(f"data prepare {name} --out new --skip-invalid", name) for name in PAIRS[:4]),
    Target("data inspect pairs.jsonl --floor", "pairs.jsonl"),
    Target("run recipe.yaml --data pairs.jsonl --out new --until data", "recipe.yaml", ("pairs.jsonl",)),
    Target("run recipe.yaml --data pairs.jsonl --out new --until data", "pairs.jsonl", ("recipe.yaml",)),
    Target("doctor recipe.yaml --hardware l4 --plan", "recipe.yaml"),
    Target("doctor recipe.yaml --hardware l4 --set model.init=null --set model.base=models/policy", "models/policy/config.json", ("recipe.yaml",)),
    Target("recipes show recipe.yaml", "recipe.yaml"),
    Target("evaluate verdicts.jsonl --resamples 20", "verdicts.jsonl"),
    Target("evaluate annotations.json --resamples 20 --alpaca new.json", "annotations.json"),
    Target("evaluate verdicts.jsonl annotations.json --resamples 20 --rank", "verdicts.jsonl", ("annotations.json",)),
    *(Target("evaluate run --resamples 20", f"run/{name}") for name in RUN_FILES),
    *(Target("evaluate run --resamples 20", f"run/{name}/stage.json") for name in ("evaluation", "gap")),
    Target(f"{JUDGE} scripted --model replies.jsonl", "replies.jsonl", ("answers.jsonl", "others.jsonl")),
    *(Target(f"{JUDGE} scripted --model replies.jsonl", name, ("replies.jsonl", "answers.jsonl", "others.jsonl")) for name in ("answers.jsonl", "others.jsonl")),
    Target(f"{JUDGE} llm --model m --base-url nowhere --template judge.txt", "judge.txt", ("answers.jsonl", "others.jsonl")),
    Target(f"{JUDGE} llm --model m --base-url nowhere --price prices.json", "prices.json", ("answers.jsonl", "others.jsonl")),
    Target(f"{JUDGE} llm --model m --base-url nowhere --cache replies.sqlite", "replies.sqlite", ("answers.jsonl", "others.jsonl")),
    *(Target(f"{JUDGE} reward --model models/gap", f"models/gap/{name}", ("answers.jsonl", "others.jsonl")) for name in MODEL),
    Target(IMPROVE, "answers.jsonl", ("models",)),
    Target(IMPROVE.replace(".jsonl -o", ".csv -o"), "answers.csv", ("models",)),
    *(Target(IMPROVE, f"models/improver/{name}", ("answers.jsonl", "models/gap")) for name in MODEL),
    Target("improve --prompt hello --response well --run run --rounds 1", "run/recipe.json"),
    Target("improve --prompt hello --response well --run run --rounds 1", "run/gap/model/calibration.json"),
    Target("improve --prompt hello --response well --run run --rounds 1", "run/rl-1-policy/stage.json"),
    Target("rate --votes votes.sqlite --export new.jsonl", "votes.sqlite"),
    *(Target("export run -o new", f"run/{name}") for name in ("recipe.json", "rl-1-policy/stage.json", "data/stage.json", "evaluation/stage.json", "rl-1-policy/model/pit.json")),
    Target("calibrate --run run --items 8", "run/data/stage.json"),
    Target("serve --improver models/improver --gap models/gap --check --port 0", "models/gap/pit.json", ("models/improver",)),
]  # fmt: skip
CASES = [(number, TARGETS[number % len(TARGETS)]) for number in range(EACH * len(TARGETS))]


def sampled(cases):
    """Each case as a parameter; those that are not in the sample have the marker."""
    marks = {True: [pytest.mark.hostile], False: []}
    return [pytest.param(number, *case, id=str(number), marks=marks[number % SAMPLE > 0]) for number, *case in cases]


@pytest.fixture(scope="session")
def workplace(tiny_run, bases, tmp_path_factory):
    """Everything that a command of this test reads, undamaged. Never write to it."""
    from builders import generator_checkpoint, scorer_checkpoint

    place = tmp_path_factory.mktemp("workplace")
    shutil.copytree(tiny_run.root, place / "run")
    (place / "run/gap/model/calibration.json").write_text(json.dumps({"R_PIT": CALIBRATION}))
    for kind in ("improver", "policy"):
        generator_checkpoint(bases("words"), place / "models" / kind, kind)
    scorer_checkpoint(bases("words"), place / "models/gap", "gap")

    def lines(name, rows):
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    talk = [{"role": "user", "content": "is it small ?"}]
    pairs = [{"prompt": f"is it {n} ?", "chosen": f"yes {n} .", "rejected": "no ."} for n in range(30)]
    pairs += [{"prompt": talk, "chosen": [{"role": "assistant", "content": "yes ."}], "rejected": "no"}]
    lines("pairs.jsonl", pairs)
    (place / "pairs.json").write_text(json.dumps(pairs))
    (place / "pairs.csv").write_text(
        "prompt,chosen,rejected\n" + "".join(f"is it {n} ?,yes {n} .,no .\n" for n in range(30))
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs[:30]), place / "pairs.parquet")
    (place / "pairs.jsonl.gz").write_bytes(gzip.compress((place / "pairs.jsonl").read_bytes()))
    lines("ranked.jsonl", [{"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}] * 3)
    lines("rated.jsonl", [{"prompt": "q", "completion": f"a {n}", "label": n % 2 == 0} for n in range(6)])
    (place / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "data": {**RECIPE["data"], "source": None}}))
    answers = [{"prompt": f"is it small {n} ?", "response": "the price is nine ."} for n in range(4)]
    lines("answers.jsonl", answers)
    lines("others.jsonl", [{**row, "response": "it is small ."} for row in answers])
    (place / "answers.csv").write_text("prompt,response\n" + "is it small ?,the price is nine .\n" * 4)
    lines("replies.jsonl", [{"text": f"Verdict: {'AB'[n % 2]}"} for n in range(8)])
    (place / "judge.txt").write_text("{{ prompt }} {{ first }} {{ second }} {{ mark }}")
    (place / "prices.json").write_text('{"m": [1, 0.5, 2], "n": {"input": 1, "cached": 1, "output": 1}}')
    rows = [
        {"item": str(n), "first": "a", "second": "b", "verdict": "win" if n % 3 else "loss", "judge": "j"}
        for n in range(9)
    ]
    reply = {"swapped": False, "verdict": "win", "text": "A", "cost": 0.1}
    rows += [
        {**row, "judge": "k", "replies": [reply, {**reply, "swapped": True}], "lengths": [3, 4], "scores": [1.0, 0.5]}
        for row in rows
    ]
    lines("verdicts.jsonl", rows)
    about = {"output_1": "x", "output_2": "yy", "generator_1": "base", "generator_2": "mine", "annotator": "j"}
    marks = [{"instruction": f"q {n}", **about, "preference": 1 + n % 2} for n in range(9)]
    (place / "annotations.json").write_text(json.dumps(marks))
    votes = Votes(place / "votes.sqlite")
    for ballot in ballots([Comparison(Prompt.of("q"), "a", "b", "1")], "Ann", votes.seed):
        votes.add(ballot, "Ann", Verdict.WIN, 1.0)
    ReplyCache(place / "replies.sqlite")
    return place


CALIBRATION = {
    "scorer": "R_PIT", "margin": 0.1, "harm": 0.1, "confidence": 0.9, "items": 30, "judge": "true utility",
    "settings": {"rounds": 1}, "gaps": [0.1, -0.2], "growth": [1.0, 1.1],
}  # fmt: skip


def copied(workplace, folder, names):
    for name in names:
        source, to = workplace / name, folder / name
        if to.exists():
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, to)


def contents(folder):
    """The digest of each file that may not change. Locks, and folders that a verb makes, may come."""
    found = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}
    return {path: hashlib.sha256(content).hexdigest() for path, content in found.items()}


def odd_place(rng, file):
    """Put something that is no regular file in the place of a file."""
    file.unlink()
    match rng.randrange(5):
        case 0:
            file.mkdir()
        case 1:
            os.mkfifo(file)
        case 2:
            file.symlink_to("/dev/zero")
        case 3:
            file.symlink_to(file.name)
        case 4 if file.suffix == ".gz":
            file.write_bytes(gzip.compress(b"\x00" * 10**8) * 40)
    # in the last case: nothing


def damaged(rng, file):
    if rng.random() < 0.12:
        return odd_place(rng, file)
    ways = [*ANY, *BY_SUFFIX.get(file.suffix, [])]
    file.write_bytes(rng.choice(ways)(rng, file.read_bytes()))


def check(command, folder):
    before = contents(folder)
    outcome = call(command, folder, SECONDS)
    told = f"pit {' '.join(command)}\n{outcome.output[-2000:]}\n{outcome.errors[-4000:]}"
    assert outcome.code in (0, 2), f"exit code {outcome.code}: {told}"
    assert "Traceback" not in outcome.errors, told
    assert outcome.code == 0 or "Error: " in outcome.errors, told
    assert outcome.memory < MEMORY, f"{outcome.memory / 1e9:.1f} GB: {told}"
    for name in ("run/gap/model/calibration.json",) if command[0] == "calibrate" else ("replies.sqlite",):
        before.pop(folder / name, None)  # the place of a result
    after = contents(folder)
    assert {path: after.get(path) for path in before} == before, told


@pytest.mark.parametrize(("number", "target"), sampled(CASES))
def test_a_damaged_file(number, target, workplace, tmp_path):
    rng, folder = random.Random(number), tmp_path / "here"
    run = ("run",) if " run" in f" {target.file} {target.command}" and "run/" in target.file else ()
    model = (str(Path(target.file).parent),) if target.file.startswith("models/") else ()
    copied(workplace, folder, [*run, *model, target.file, *target.needs])
    damaged(rng, folder / target.file)
    check(target.command.split(), folder)


SOUND = {
    "run": "run recipe.yaml --data pairs.jsonl --out new --until data",
    "inspect": "data inspect pairs.jsonl",
    "prepare": "data prepare pairs.jsonl --out new",
    "doctor": "doctor recipe.yaml --hardware l4",
    "evaluate": "evaluate verdicts.jsonl --resamples 20",
    "judge": "judge answers.jsonl others.jsonl -o new.jsonl --judge scripted --model replies.jsonl",
    "improve": "improve answers.jsonl -o new.jsonl --improver models/improver --gap models/gap --rounds 1",
    "calibrate": "calibrate --run nowhere",
    "rate": "rate --votes votes.sqlite --export new.jsonl",
    "export": "export nowhere -o new",
    "serve": "serve --gap models/gap --check --port 0",
    "reproduce": "reproduce nowhere --out new",
    "show": "recipes show recipe.yaml",
}
"""A command of each verb that is right, to which an option with an odd value is added."""
FILES = (
    "recipe.yaml",
    "pairs.jsonl",
    "verdicts.jsonl",
    "answers.jsonl",
    "others.jsonl",
    "replies.jsonl",
    "models",
    "votes.sqlite",
)
VALUES = ["nan", "inf", "-inf", "1e400", str(10**20), str(-(10**20)), "-1", "0", "", " ", "x", "\x1b[2J", "é", "[", "{}", "1,2,3",
    "http://[::1", "http://", "https://a:b@c:99999999/", "http://127.0.0.1:9/v1", "/dev/zero", "/dev/null", "/", ".", "nowhere/x",
    "a=b", "=", "loop.rounds=nan", "data.pairs=" + "9" * 30, "seed=" + "9" * 30, "x" * 5_000, "\udcff", "-", "--"]  # fmt: skip


def options():
    """Every option of every verb that takes a value."""
    for name in VERBS:
        verb = load_verb(name)
        for command in verb.commands.values() if isinstance(verb, click.Group) else [verb]:
            for option in command.params:
                if isinstance(option, click.Option) and not option.is_flag and command.name in SOUND:
                    yield command.name, option.opts[0]


OPTIONS = list(options())
OPTION_CASES = [(number, *OPTIONS[number % len(OPTIONS)]) for number in range(3 * len(OPTIONS))]


@pytest.mark.parametrize(("number", "verb", "option"), sampled(OPTION_CASES))
def test_an_odd_value_of_an_option(number, verb, option, workplace, tmp_path):
    value, folder = random.Random(number).choice(VALUES), tmp_path / "here"
    copied(workplace, folder, FILES)
    command = SOUND[verb].split()
    if option == "--host" and value not in ("", "x"):
        pytest.skip("it may be an address to listen at")
    if option in (
        "-o",
        "--output",
        "--out",
        "--export",
        "--json",
        "--alpaca",
        "--votes",
        "--cache",
    ) and value.startswith("/"):
        value = "/proc/nowhere"  # nothing of this machine is written to
    check([*command, option, value], folder)


URLS = (
    "http://[",
    "http://[::1",
    "http://h:99999/v1",
    "ftp://h/v1",
    "h/v1",
    "http:///v1",
    "http://a b/v1",
    "http://\udcff/v1",
)
BODIES = ('{"model": null}', '{"messages": []}', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[" * 10**4, "null")
LLM = "judge answers.jsonl others.jsonl -o new.jsonl --judge llm --model m"
SENT = [
    *((f"{LLM} --base-url", url) for url in URLS),
    *(
        (f"serve --gap models/gap --check --port 0 {option}", url)
        for option in ("--upstream", "--improver")
        for url in URLS
    ),
    *((f"serve --check --port 0 --improver {URLS[0][:-1]}h/v1 --gap", url) for url in URLS),
    *(
        ("improve answers.jsonl -o new.jsonl --gap models/gap --engine endpoint --model m --base-url", url)
        for url in URLS
    ),
    *((f"{LLM} --base-url http://127.0.0.1:9/v1 --body", body) for body in BODIES),
    *((f"{LLM} --base-url http://127.0.0.1:9/v1 --timeout", value) for value in ("1e300", "1e-300", "9" * 400, "nan")),
    *((f"{LLM} --base-url http://127.0.0.1:9/v1 --model", value) for value in ("\udcff", "", "x" * 10**5)),
    *((f"{SOUND['doctor']} --devices", value) for value in ("9" * 400, str(2**63), "1e3")),
]
"""Commands that would send something, each with an odd last value."""


@pytest.mark.parametrize(("number", "command", "value"), sampled([(n, *case) for n, case in enumerate(SENT)]))
def test_an_odd_value_that_would_be_sent(number, command, value, workplace, tmp_path):
    copied(workplace, tmp_path / "here", FILES)
    check([*command.split(), value], tmp_path / "here")


def test_there_are_as_many_cases_as_promised():
    assert len(CASES) + len(OPTION_CASES) + len(SENT) >= 800
    verbs = {target.command.split()[0] for target in TARGETS} | {verb for verb, _ in OPTIONS}
    assert set(VERBS) - verbs == set()
