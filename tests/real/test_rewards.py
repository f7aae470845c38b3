"""OpenRLHF's and verl's own clients of a reward get the gaps of R_PIT from `pit serve --gap`."""

from __future__ import annotations

import json

import pytest
from real_engines import ROOT, engine, pit_serve, read_rows

from pitlm.models.scorers import GapModel


@pytest.fixture(scope="module")
def case(pocket_models, pocket_answers):
    """x, y_ref, four answers and the gaps that the gap model gives; and a server of the gap model."""
    row, *others = read_rows(pocket_answers)
    prompt, reference = row["prompt"], row["response"]
    answers = [reference, *(other["response"] for other in others[:3])]
    model = GapModel.from_pretrained(pocket_models["gap"])
    gaps = [model.gap(prompt, answer, reference) for answer in answers]
    assert gaps[0] == 0.0
    assert len(set(gaps)) == 4
    label = json.dumps({"prompt": prompt, "reference": reference})
    with pit_serve("gap", "--gap", pocket_models["gap"]) as url:
        yield {"prompt": prompt, "reference": reference, "answers": answers, "label": label, "gaps": gaps, "url": url}


@pytest.mark.real("openrlhf")
def test_openrlhf_s_reward_client(case):
    """The client of `--reward.remote_url` (SingleTurnAgentExecutor) gets the gaps of GapModel.gap from /get_reward."""
    told = {**case, "url": case["url"].replace("/v1", "/get_reward"), "example": None}
    found = engine("openrlhf").ask("ask_openrlhf.py", told)
    assert [sample["reward"] for sample in found] == [[pytest.approx(gap, abs=1e-5)] for gap in case["gaps"]]
    assert [sample["scores"] for sample in found] == [sample["reward"] for sample in found]
    assert [sample["extra_logs"] for sample in found] == [{"gap": sample["reward"]} for sample in found]


@pytest.mark.real("openrlhf")
def test_openrlhf_s_agent(case):
    """examples/openrlhf/agent_func.py, below OpenRLHF's own class, gives the gaps of GapModel.gap as rewards."""
    told = {**case, "example": str(ROOT / "examples" / "openrlhf" / "agent_func.py")}
    found = engine("openrlhf").ask("ask_openrlhf.py", told, PIT_URL=case["url"])
    assert [sample["reward"] for sample in found] == pytest.approx(case["gaps"], abs=1e-5)
    assert [sample["extra_logs"]["copied"] for sample in found] == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.real("verl")
def test_verl_s_reward_manager(case):
    """verl's NaiveRewardManager with examples/verl/pit_reward.py gets the gaps of GapModel.gap."""
    told = {**case, "example": str(ROOT / "examples" / "verl" / "pit_reward.py")}
    found = engine("verl").ask("ask_verl.py", told, PIT_URL=case["url"])
    assert [sample["reward_score"] for sample in found] == pytest.approx(case["gaps"], abs=1e-5)
    assert [sample["reward_extra_info"]["copied"] for sample in found] == [1.0, 0.0, 0.0, 0.0]
