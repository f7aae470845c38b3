"""The protocol of engines: requests in batches, and another package's engine at the command line."""

from __future__ import annotations

import json
import sys

import pytest
from engine_requests import X, requests
from tiny_run import models

from pitlm.cli.main import main
from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer
from pitlm.engines.engine import Engine, Finished, ModelSource, open_engine, seed_of

__all__ = ["models"]


class Backwards(Engine):
    """Finishes the newest request first; ``price`` alone cannot be answered."""

    hungry = True

    def __init__(self) -> None:
        self.queue = []

    @property
    def pending(self):
        return len(self.queue)

    def submit(self, request):
        if not request.prompt.text:
            raise InputError("found no prompt")
        self.queue.append(request)

    def step(self):
        request = self.queue.pop()
        failed = request.prompt.text == "price ?"
        text = f"{request.prompt.text}|{request.reference}|{request.temperature}|{request.seed}"
        return [Finished(request.key, None if failed else Answer(text, 1, 2), "no answer" if failed else "")]


def test_a_batch_keeps_the_order_and_the_keys_and_has_its_failures():
    done = Backwards().write(requests(0.5))
    assert [one.key for one in done] == [(0, 0), (1, 0), (2, 0)]
    assert [one.answer and one.answer.text for one in done] == [
        "what is the price ?|silly question .|0.5|0",
        "is it small ?|it is small .|0.5|1",
        None,
    ]
    assert done[2].failure == "no answer"


def test_an_engine_stands_where_a_policy_does():
    answers = Backwards().answer(X, temperature=0.5, seed=7)
    assert [one and one.text for one in answers] == [
        f"what is the price ?||0.5|{seed_of(7, 0)}",
        f"is it small ?||0.5|{seed_of(7, 1)}",
        None,
    ]


def test_every_answer_has_a_seed_of_its_own():
    seeds = {seed_of(seed, item, number) for seed in range(3) for item in range(30) for number in range(3)}
    assert len(seeds) == 270
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(1, 2, 3) == seed_of(1, 2, 3)


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="--engine: found 'vlm', did you mean 'vllm'"):
        open_engine("vlm", ModelSource("improver"))


PARROT = """
from pitlm.core.nouns import Answer
from pitlm.engines.engine import Engine, Finished


class Parrot(Engine):
    hungry = True

    def __init__(self, source):
        self.source, self.queue = source, []

    @property
    def pending(self):
        return len(self.queue)

    def submit(self, request):
        self.queue.append(request)

    def step(self):
        done, self.queue = self.queue, []
        return [Finished(r.key, Answer(f"{self.source.folder.name} says {r.reference}", 3, 4)) for r in done]
"""


@pytest.fixture
def parrot(tmp_path, monkeypatch):
    """A package outside pitlm that is installed here."""
    metadata = tmp_path / "site" / "parrots-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: parrots\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[pitlm.engines]\nparrot = parrots:Parrot\n")
    (tmp_path / "site" / "parrots.py").write_text(PARROT)
    monkeypatch.delitem(sys.modules, "parrots", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.usefixtures("parrot")
def test_another_package_adds_an_engine_to_the_command_line(models, tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"price {n} ?", "response": "nine ."}) + "\n" for n in range(3)))
    command = ["improve", str(source), "-o", str(out), "--rounds", "1"]
    command += [f"--{kind}={models / kind}" for kind in ("improver", "gap")]

    def pit(engine):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--engine", engine])
        return stop.value.code, capsys.readouterr().err

    code, errors = pit("parrot")
    assert code == 0, errors
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["pit"]["rounds"][0]["proposal"] for row in rows] == ["improver says nine ."] * 3
    code, errors = pit("parot")
    assert code == 2
    assert "--engine: found 'parot', expected one of transformers, vllm, endpoint, parrot, ray" in errors
