"""R_PIT as the reward of OpenRLHF and verl: their request shapes, and the examples beside stand-ins of their
classes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import httpx
import pytest
from builders import scorer_checkpoint
from proxies import proxied, running

from pitlm.core.nouns import Prompt
from pitlm.models.scorers import GapModel

EXAMPLES = Path(__file__).parents[2] / "examples"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "is it small ?"}]
X, REFERENCE = "is it small ?", "silly question ."
LABEL = json.dumps({"prompt": X, "reference": REFERENCE})
SHOWN = "<|user|>is it small ?<|assistant|>"


def load(path):
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SingleTurnAgentExecutor:
    """The part of OpenRLHF's class that the example uses: takes a text, returns tokens and the range of the answer."""

    def __init__(self, remote_rm_url=None):
        assert remote_rm_url is None

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
        shown = hf_tokenizer(prompt)
        made = await llm_engine.generate(shown, sampling_params)
        return {
            "prompt": prompt,
            "label": label,
            "observation_tokens": shown + made.token_ids,
            "action_ranges": [(len(shown), len(shown) + len(made.token_ids))],
            "rollout_log_probs": None,
            "truncated": made.finish_reason == "length",
            "reward": None,
            "scores": None,
            "extra_logs": {},
            "min_weight_version": 7,
        }


class Characters:
    """A tokenizer of one token a character; `$` ends an answer."""

    def __call__(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids, skip_special_tokens=False):
        text = "".join(map(chr, ids))
        return text.replace("$", "") if skip_special_tokens else text

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"


class Engine:
    """Gives scripted answers in turn, and remembers each prompt."""

    def __init__(self, *answers):
        self.answers, self.shown = list(answers), []

    async def generate(self, ids, sampling_params):
        self.shown.append("".join(map(chr, ids)))
        text = self.answers.pop(0)
        return SimpleNamespace(token_ids=list(map(ord, text)), finish_reason="stop" if text.endswith("$") else "length")


@pytest.fixture(scope="module")
def executor():
    agent = ModuleType("openrlhf.utils.agent")
    agent.SingleTurnAgentExecutor = SingleTurnAgentExecutor
    packages = {name: ModuleType(name) for name in ("openrlhf", "openrlhf.utils")}
    with patch.dict(sys.modules, {**packages, agent.__name__: agent}):
        return load(EXAMPLES / "openrlhf" / "agent_func.py").AgentExecutor


@pytest.fixture(scope="module")
def compute_score():
    return load(EXAMPLES / "verl" / "pit_reward.py").compute_score


def play(executor, label, *answers):
    """Return one sample and the prompts that the engine got."""
    engine = Engine(*answers)
    arguments = {"sampling_params": None, "max_length": 99, "hf_tokenizer": Characters(), "llm_engine": engine}
    return asyncio.run(executor().execute(prompt="not looked at", label=label, images=None, **arguments)), engine.shown


def as_verl_asks(function, response, **extra):
    """The arguments of verl's NaiveRewardManager, which awaits a coroutine function."""
    info = {"num_turns": 2, "rollout_reward_scores": {}, **extra}
    return asyncio.run(function(data_source="pairs", solution_str=response, ground_truth="", extra_info=info))


def test_a_real_server_scores_for_both_as_the_gap_model_does(bases, tmp_path, executor, compute_score, monkeypatch):
    folder = scorer_checkpoint(bases("words"), tmp_path / "gap", "gap")
    answers = ["the price is nine .", "it is small .", "", REFERENCE]
    gap = GapModel.from_pretrained(folder)
    expected = [gap.gap(X, answer, REFERENCE) for answer in answers]
    assert len(set(expected)) == 4
    assert expected[3] == 0.0

    async def as_openrlhf_asks(url):
        async with httpx.AsyncClient(timeout=600) as client:  # one request for each sample, many at once
            bodies = ({"query": [f"{SHOWN}{y}<|end|>"], "prompts": [SHOWN], "labels": [LABEL]} for y in answers)
            replies = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
        assert [reply.status_code for reply in replies] == [200] * 4
        return [reply.json() for reply in replies]

    with running("--gap", folder, program=("-m", "pitlm.cli.main"), OMP_NUM_THREADS="1") as (_, url):
        monkeypatch.setenv("PIT_URL", url)
        replies = asyncio.run(as_openrlhf_asks(url.replace("/v1", "/get_reward")))
        assert [reply["rewards"] for reply in replies] == [[pytest.approx(value, abs=1e-5)] for value in expected]
        assert [reply["scores"] for reply in replies] == [reply["rewards"] for reply in replies]
        assert [reply["extra_logs"] for reply in replies] == [{"gap": reply["rewards"]} for reply in replies]
        found = [as_verl_asks(compute_score, y, prompt=X, reference=REFERENCE)["score"] for y in answers]
        assert found == pytest.approx(expected, abs=1e-5)
        rewards = [play(executor, LABEL, f"{y}$")[0]["reward"] for y in answers]
        assert rewards == pytest.approx(expected, abs=1e-5)
        long = {"query": ["q" + "small " * 300], "prompts": ["q"], "labels": [LABEL]}
        refused = httpx.post(url.replace("/v1", "/get_reward"), json=long, timeout=600)
        assert refused.status_code == 400
        assert "tokens with its answer, expected at most 256: the gap model's window" in refused.text
        with pytest.raises(RuntimeError, match=r"HTTP Error 400.*the gap model's window"):
            as_verl_asks(compute_score, "small " * 300, prompt=X, reference=REFERENCE)


@pytest.fixture(scope="module")
def scripted():
    with proxied(token="door-key", upstream_key="sk-upstream") as proxy:
        yield proxy


@pytest.fixture
def pit(scripted, monkeypatch):
    """A server whose gap model scores 1 for up to two `Better`, and -1 for more."""
    monkeypatch.setenv("PIT_URL", scripted.url)
    monkeypatch.setenv("PIT_SERVE_TOKEN", "door-key")
    scripted.judge.failure, scripted.judge.asked = "", []
    gap = type(scripted.judge).gap

    async def remember(item):
        scripted.judge.asked.append(item)
        return await gap(scripted.judge, item)

    monkeypatch.setattr(scripted.judge, "gap", remember)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the examples' wait between two attempts
    return scripted


def post(pit, **body):
    url, headers = pit.url.replace("/v1", "/get_reward"), {"Authorization": "Bearer door-key"}
    return httpx.post(url, json=body, headers=headers, timeout=600)


def test_the_answer_is_what_follows_the_prompt_without_the_tokenizer_s_marks(pit):
    told = {"prompt": ASKED, "reference": "No."}
    ends = ["<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>\n", "<eos><pad><pad>", "<|im_end|>\n<|endoftext|>", ""]
    reply = post(
        pit,
        query=[f"{SHOWN} Yes <b>.{end}" for end in ends],
        prompts=[SHOWN] * len(ends),
        labels=[json.dumps(told), told] + [json.dumps(told)] * (len(ends) - 2),
    )
    assert reply.json() == {"rewards": [1.0] * 7, "scores": [1.0] * 7, "extra_logs": {"gap": [1.0] * 7}}
    assert {item.response for item in pit.judge.asked} == {"Yes <b>."}
    assert {item.reference for item in pit.judge.asked} == {"No."}
    assert pit.judge.asked[0].prompt == Prompt.of(ASKED)


GOOD = {"query": [f"{SHOWN}Yes."], "prompts": [SHOWN], "labels": [LABEL]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": []}, "query: List should have at least 1 item"),
        ({"query": ["other"]}, "query.0: found a text that its prompt does not begin"),
        ({"labels": []}, "labels: found 0, expected 1, one for each query"),
        ({"prompts": [SHOWN] * 2}, "prompts: found 2, expected 1"),
        ({"labels": ["42"]}, 'labels.0: found "42", expected JSON with "prompt"'),
        ({"labels": [""]}, 'labels.0: found nothing, expected JSON with "prompt"'),
        ({"labels": [json.dumps({"prompt": "x"})]}, 'and "reference"'),
        ({"labels": [json.dumps({"prompt": "x", "reference": 3})]}, 'and "reference"'),
        ({"labels": [json.dumps({"prompt": [], "reference": ""})]}, "labels.0.prompt: found no user turn"),
    ],
)
def test_what_cannot_be_read_is_refused_with_one_clear_message(pit, change, message):
    reply = post(pit, **{**GOOD, **change})
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]
    assert pit.judge.asked == []


def test_other_troubles_have_other_statuses(pit):
    assert httpx.post(pit.url.replace("/v1", "/get_reward"), json=GOOD, timeout=600).status_code == 401
    pit.judge.failure = "out of memory"
    assert post(pit, **GOOD).status_code == 503
    with proxied(improves=False) as bare:
        assert httpx.post(bare.url.replace("/v1", "/get_reward"), json=GOOD, timeout=600).status_code == 404


def test_openrlhf_s_agent_improves_the_reference_of_the_label(pit, executor):
    output, shown = play(executor, json.dumps({"prompt": ASKED, "reference": "No."}), "Better$")
    asked = "[system]Be brief.[user]is it small ?"
    assert shown == [f"{asked}[assistant]No.[user]Please write a better answer.[assistant]"]
    assert output["observation_tokens"] == list(map(ord, shown[0] + "Better$"))
    assert (output["reward"], output["scores"]) == (1.0, 1.0)
    assert output["extra_logs"] == {"gap": 1.0, "copied": 0.0}
    assert output["min_weight_version"] == 7  # the fields of OpenRLHF's own executor are kept
    assert [(item.reference, item.response) for item in pit.judge.asked] == [("No.", "Better")]


def test_openrlhf_s_agent_answers_first_where_the_label_has_no_reference(pit, executor, monkeypatch):
    monkeypatch.setenv("PIT_ASK", "better")
    output, shown = play(executor, json.dumps({"prompt": X}), "Hm.$", "Hm.$")
    assert shown == [f"[user]{X}[assistant]", f"[user]{X}[assistant]Hm.[user]better[assistant]"]
    assert output["extra_logs"]["copied"] == 1.0
    assert output["action_ranges"] == [(len(shown[1]), len(shown[1]) + 4)]


def test_openrlhf_s_agent_takes_something_from_an_answer_that_was_cut_off(pit, executor, monkeypatch):
    assert play(executor, LABEL, "Better")[0]["reward"] == 0.0
    monkeypatch.setenv("PIT_TRUNCATED_PENALTY", "0.25")
    output, _ = play(executor, LABEL, "Better")
    assert (output["reward"], output["extra_logs"]["gap"]) == (0.75, 1.0)


def test_verl_gets_a_score_and_what_it_logs(pit, compute_score):
    import numpy as np

    found = as_verl_asks(compute_score, " Better ", prompt=np.array(ASKED, dtype=object), reference="No.")
    assert found == {"score": 1.0, "gap": 1.0, "copied": 0.0}
    assert pit.judge.asked[0].prompt == Prompt.of(ASKED)
    assert pit.judge.asked[0].response == "Better"


@pytest.mark.parametrize("who", ["openrlhf", "verl"])
def test_a_reward_that_cannot_be_had_is_an_error_and_never_a_number(pit, executor, compute_score, monkeypatch, who):
    def ask():
        return (
            play(executor, LABEL, "Yes.$")
            if who == "openrlhf"
            else as_verl_asks(compute_score, "Yes.", prompt=X, reference=REFERENCE)
        )

    pit.judge.failure = "out of memory"
    with pytest.raises(RuntimeError, match=r"503.*out of memory"):
        ask()
    assert len(pit.judge.asked) == 5
    monkeypatch.setenv("PIT_SERVE_TOKEN", "wrong")
    with pytest.raises(RuntimeError, match="401"):
        ask()
    monkeypatch.setenv("PIT_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(RuntimeError, match="no gap"):
        ask()
