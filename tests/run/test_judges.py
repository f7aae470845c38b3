"""The judges of a recipe: which are refused before any cost, and what the evaluation depends on."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

import pytest
from scripted_endpoint import Fail, ScriptedEndpoint
from tiny_run import RECIPE

from pitlm.core.errors import InputError
from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.nouns import Prompt
from pitlm.core.recipe import Recipe
from pitlm.core.verdicts import Comparison
from pitlm.models.adapters import Bases
from pitlm.run.context import Context
from pitlm.run.evaluation import judges_of
from pitlm.run.judges import check_judges, judge_settings, make_judge, run_judge

LLM = {"kind": "llm", "model": "m", "base_url": "http://localhost:9/v1"}
PROMPT = "lamp : price nine color red size small . price ?"


def recipe(*judges, source="pocket"):
    data = {**RECIPE["data"], "source": source}
    return Recipe.of({**RECIPE, "data": data, "evaluation": {"judges": list(judges)}}, "mine.yaml")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ([{"kind": "trut"}], "evaluation.judges.0.kind: found 'trut', did you mean 'truth'?"),
        ([{"kind": "reward"}], "evaluation.judges.0.kind: found 'reward', expected 'truth' on data with a known truth"),
        ([{"kind": "truth", "model": "m"}], "evaluation.judges.0.model: found beside kind truth"),
        ([{"kind": "truth"}, {"kind": "llm"}], "evaluation.judges.1.model: found nothing, expected the model's name"),
        ([{"kind": "llm", "model": "m"}], "evaluation.judges.0: found no OPENAI_API_KEY"),
        ([{**LLM, "max_cost": 1.0}], "evaluation.judges.0: a cost limit needs a price"),
        ([{**LLM, "price": "1,2"}], "evaluation.judges.0: price '1,2': found 1,2, expected three numbers"),
        ([{**LLM, "template": "nowhere.txt"}], "evaluation.judges.0: nowhere.txt: found"),
        ([{"kind": "scripted", "model": "nowhere.jsonl"}], "evaluation.judges.0: nowhere.jsonl: found"),
        ([{"kind": "foreign", "model": "./nowhere"}], "evaluation.judges.0: ./nowhere: cannot load a reward model"),
        ([LLM, {**LLM, "temperature": 1.0}], "evaluation.judges.1: found a second judge called 'm'"),
    ],
)
def test_a_judge_that_cannot_be_had_is_refused_before_the_run(judges, message):
    with pytest.raises(InputError) as refused:
        check_judges(recipe(*judges))
    assert message in str(refused.value)


def test_two_files_of_replies_need_two_names(tmp_path):
    files = [tmp_path / name / "replies.jsonl" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text('"Verdict: A"\n')
    with pytest.raises(InputError, match=r"judges\.1: found a second judge called 'replies'"):
        check_judges(recipe(*({"kind": "scripted", "model": str(file)} for file in files)))


def test_the_truth_is_known_in_the_pocket_world_alone():
    with pytest.raises(InputError, match=r"judges\.0\.kind: found 'truth', expected 'reward' on data without"):
        check_judges(recipe({"kind": "truth"}, source="pairs.jsonl"))
    check_judges(recipe({"kind": "reward"}, source="pairs.jsonl"))
    check_judges(recipe({"kind": "truth"}, LLM))


def test_the_evaluation_depends_on_what_changes_a_verdict_and_on_nothing_else(tmp_path):
    template, moved = tmp_path / "template.txt", tmp_path / "moved.txt"
    for path in (template, moved):
        path.write_text("{{ first }} {{ second }} {{ prompt }}")
    judge = JudgeSection(**LLM, template=template)
    before = judge_settings([judge])
    harmless = {"cache": Path("c"), "concurrency": 2, "timeout": 1.0, "price": "1,1,1", "max_cost": 1.0}
    assert judge_settings([judge.model_copy(update=harmless)]) == before
    assert judge_settings([judge.model_copy(update={"template": moved})]) == before
    assert judge_settings([judge.model_copy(update={"temperature": 0.5})]) != before
    template.write_text("{{ first }} {{ second }} {{ prompt }}!")
    assert judge_settings([judge]) != before
    assert json.loads(json.dumps(before)) == before
    assert judge_settings(None) == {}


def test_the_judges_of_a_run_are_ready_and_pay_for_no_reply_twice(tmp_path):
    comparisons = [Comparison(Prompt.of(PROMPT), "price nine .", "price twelve .", "7", ("m", "n"))]
    with ScriptedEndpoint(lambda request: "Verdict: A") as server:
        context = Context(recipe({"kind": "truth"}, {**LLM, "base_url": server.base_url}), tmp_path)
        for _ in range(2):
            truth, llm = judges_of(context, Bases())
            assert [judge.name for judge in (truth, llm)] == ["true utility", "m"]
            assert [str(run_judge(judge, comparisons)[0].verdict) for judge in (truth, llm)] == ["win", "inconsistent"]
        assert len(server.calls) == 2
    assert [path.name for path in tmp_path.glob("*.sqlite")] == ["judge-replies.sqlite"]


def test_a_recipe_that_names_no_judge_has_the_truth_in_the_pocket_world(tmp_path):
    (judge,) = judges_of(Context(Recipe.of(RECIPE, "mine.yaml"), tmp_path), Bases())
    assert judge.name == "true utility"


def test_a_judge_that_was_never_answered_has_no_verdicts(capsys):
    pairs = [Comparison(Prompt.of(str(number)), "yes", "no") for number in range(2)]
    with ScriptedEndpoint(lambda request: Fail(400)) as server:
        judge = make_judge(JudgeSection(kind="llm", model="m", base_url=server.base_url))
        with pytest.raises(InputError, match="found 4 calls that all failed, expected replies"):
            run_judge(judge, pairs)
    replies = iter([Fail(400), *["Verdict: A"] * 3])
    with ScriptedEndpoint(lambda request: next(replies)) as server:
        judge = make_judge(JudgeSection(kind="llm", model="m", base_url=server.base_url))
        assert len(run_judge(judge, pairs)) == 2
    assert "m: 1 calls failed and count as unparsable" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, datetime.date(2024, 1, 1), {1, 2}])
def test_a_field_of_a_request_that_is_no_json_is_refused_with_the_recipe(value):
    with pytest.raises(InputError, match=r"mine\.yaml: key 'evaluation\.judges\.0\.body"):
        recipe({**LLM, "body": {"d": value}})
