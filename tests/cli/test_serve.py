"""`pit serve` as a process: without torch, with remote models, until a signal stops it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading

import httpx
import pytest
import yaml
from builders import generator_checkpoint, scorer_checkpoint
from click.testing import CliRunner
from proxies import proxied, running
from scripted_upstream import TEXT, Upstream, served

from pitlm.cli.main import ENVIRONMENT, main
from pitlm.cli.serve import serve
from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe import Recipe
from pitlm.models.scorers import GapModel, load_gaps

ASK = {"model": "chat", "messages": [{"role": "user", "content": "2 + 2 ?"}]}


def test_it_serves_without_torch_and_finishes_what_is_in_flight():
    # The scripted upstream is the remote improver too: its answer is the proposal.
    with served(Upstream()) as up, proxied() as scorer:
        options = ("--upstream", f"{up}/v1", "--improver", f"{up}/v1", "--improver-model", "chat", "--gap", scorer.url)
        with running(*options, "--rounds", "1") as (process, url):
            reply = httpx.post(
                f"{url}/chat/completions", json={**ASK, "metadata": {"say": "Five ."}}, timeout=600
            ).json()
            # The gap model accepts it, because "Better" does not occur too often.
            assert (reply["choices"][0]["message"]["content"], reply["pit"]["gaps"]) == (TEXT, [1.0])
            assert reply["usage"]["total_tokens"] == 24
            got = []

            def stream():
                with httpx.stream(
                    "POST", f"{url}/chat/completions", json={**ASK, "model": "slow", "stream": True}, timeout=600
                ) as slow:
                    for part in slow.iter_raw():
                        got.append(part)
                        begun.set()

            begun = threading.Event()
            thread = threading.Thread(target=stream)
            thread.start()
            assert begun.wait(10)
            process.send_signal(signal.SIGTERM)
            thread.join(20)
            assert process.wait(20) == 0
    assert b"".join(got).endswith(b"data: [DONE]\n\n")


def test_it_serves_models_of_this_machine(bases, tmp_path):
    improver = generator_checkpoint(bases("words"), tmp_path / "improver", "improver")
    gap = scorer_checkpoint(bases("words"), tmp_path / "gap", "gap")
    with served(Upstream()) as up:
        options = ("--upstream", f"{up}/v1", "--improver", improver, "--gap", gap, "--margin", "100")
        with running(*options, program=("-m", "pitlm.cli.main"), OMP_NUM_THREADS="1") as (process, url):
            reply = httpx.post(f"{url}/chat/completions", json=ASK, timeout=600).json()
            assert (reply["pit"]["outcome"], reply["pit"]["failure"], reply["pit"]["rounds"]) == ("kept", None, 1)
            score = {"prompt": "x", "reference": "the price is nine .", "response": "the price is nine ."}
            assert httpx.post(f"{url}/score", json=score, timeout=600).json() == {"gap": 0.0}
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


def test_of_a_run_both_opinions_are_asked_unless_another_gap_model_is_named(bases, tmp_path):
    recipe = yaml.safe_load(find_recipe("quickstart").read_text(encoding="utf-8"))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    generator_checkpoint(bases("words"), tmp_path / Recipe.of(recipe, "it").improver_stage / "model", "improver")
    gap = scorer_checkpoint(bases("words"), tmp_path / "gap" / "model", "gap")
    reward = scorer_checkpoint(bases("words"), tmp_path / "reward" / "model", "reward", seed=2)
    item = Improvement(Prompt.of("is it small ?"), "silly question .", "the price is nine .")
    asked = {"prompt": "is it small ?", "reference": item.reference, "response": item.response}
    found = {}
    for options in ((), ("--gap", gap)):
        program = ("-m", "pitlm.cli.main")
        with running("--run", tmp_path, *options, program=program, OMP_NUM_THREADS="1") as (_, url):
            found[options] = httpx.post(f"{url}/score", json=asked, timeout=600).json()["gap"]
    both, alone = load_gaps(gap, reward), GapModel.from_pretrained(gap)
    expected = [float(scorer.gaps([item])[0]) for scorer in (both, alone)]
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve"),
        (["--upstream", "http://127.0.0.1:9", "--improver", "x"], "--improver: found no --gap beside it"),
        (["--upstream", "http://127.0.0.1:9", "--upstream-key-env", "NO_SUCH"], "found NO_SUCH empty or not set"),
        (["--upstream", "http://127.0.0.1:9", "--upstream-key-env", "KEY", "--host", "0.0.0.0"], "set PIT_SERVE_TOKEN"),
        (["--upstream", "127.0.0.1:9", "--port", "0"], "--upstream: found '127.0.0.1:9', expected a URL"),
        (["--gap", "nowhere", "--port", "0"], "nowhere: found no such folder"),
        (["--gap", "http://127.0.0.1:9/v1", "--host", "192.0.2.1"], "cannot listen there"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(arguments, message, monkeypatch):
    monkeypatch.setenv("KEY", "sk")
    monkeypatch.delenv("PIT_SERVE_TOKEN", raising=False)
    result = CliRunner().invoke(serve, [*arguments, "--check"])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_what_is_not_installed_is_named_with_what_installs_it(monkeypatch, capsys):
    for module in ("pitlm.serve.app", "pitlm.serve.web"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ENVIRONMENT:  # main() sets these for the process; restore the old values
        monkeypatch.setenv(name, os.environ.get(name, ENVIRONMENT[name]))
    with pytest.raises(SystemExit) as stop:
        main(["serve", "--upstream", "http://127.0.0.1:9/v1"])
    assert stop.value.code == 2
    assert "pip install 'pitlm[serve]'" in capsys.readouterr().err


def test_a_server_that_is_open_to_others_says_so(monkeypatch):
    monkeypatch.delenv("PIT_SERVE_TOKEN", raising=False)
    options = ["--upstream", "http://127.0.0.1:9/v1", "--host", "0.0.0.0", "--port", "0", "--check"]
    assert "PIT_SERVE_TOKEN is not set" in CliRunner().invoke(serve, options).stderr
    monkeypatch.setenv("PIT_SERVE_TOKEN", "t")
    monkeypatch.setenv("KEY", "sk")
    assert CliRunner().invoke(serve, [*options, "--upstream-key-env", "KEY"]).stderr == ""


def test_check_says_what_would_be_served():
    result = CliRunner().invoke(serve, ["--upstream", "http://127.0.0.1:9/v1", "--port", "0", "--check"])
    assert result.exit_code == 0
    assert "upstream   http://127.0.0.1:9/v1" in result.output
    assert re.search(r"curl http://127.0.0.1:\d+/v1/chat/completions", result.output)
