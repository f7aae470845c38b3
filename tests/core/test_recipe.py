"""Recipes: which are accepted, and how wrong ones are refused."""

from __future__ import annotations

import copy

import pytest
import yaml

from pitlm.core.errors import InputError
from pitlm.core.packaged_recipes import find_recipe, recipe_names
from pitlm.core.recipe import Recipe
from pitlm.core.recipe_file import load_recipe, read_tree

TREE = {
    "name": "small",
    "data": {"source": "pocket"},
    "model": {"init": {"layers": 1}},
    "policy_sft": {"learning_rate": 1e-3},
    "reward": {"learning_rate": 1e-3},
    "improver_sft": {"learning_rate": 1e-3},
    "gap": {"learning_rate": 1e-3},
    "curriculum": {"stages": ["data", "policy"], "rl": {"learning_rate": 1e-4}},
}


def changed(**values):
    """TREE with some values replaced; keys have ``__`` for the dot."""
    tree = copy.deepcopy(TREE)
    for dotted, value in values.items():
        *sections, leaf = dotted.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def refusal(tree) -> str:
    with pytest.raises(InputError) as caught:
        Recipe.of(tree, "mine.yaml")
    return str(caught.value)


def test_a_small_recipe_is_filled_with_defaults():
    recipe = Recipe.of(TREE, "mine.yaml")
    assert recipe.curriculum.rl.beta == 0.05
    assert recipe.curriculum.rl.epochs > 100  # steps set the length, not epochs
    assert recipe.loop.temperature == 0.4
    assert recipe.policy_rl is None


@pytest.mark.parametrize(
    ("values", "key", "nearest"),
    [
        ({"curriculum__rl__bata": 0.1}, "curriculum.rl.bata", "beta"),
        ({"evaluaton": {}}, "evaluaton", "evaluation"),
        ({"model__init__layer": 3}, "model.init.layer", "layers"),
        ({"peft": {"rank": 4, "alhpa": 8}}, "peft.alhpa", "alpha"),
        ({"policy_rl": {"learning_rate": 1e-4, "temprature": 1.0}}, "policy_rl.temprature", "temperature"),
        ({"gap__learningrate": 1e-4}, "gap.learningrate", "learning_rate"),
        ({"evaluation__judges": [{"kind": "llm", "modle": "m"}]}, "evaluation.judges.0.modle", "model"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(values, key, nearest):
    message = refusal(changed(**values))
    assert f"mine.yaml: unknown key '{key}'; did you mean '{nearest}'?" in message


def test_an_unknown_key_far_from_all_lists_what_there_is():
    assert "mine.yaml: unknown key 'loop.xyz'; expected one of rounds, proposals, margin, temperature" in refusal(
        changed(loop__xyz=1)
    )


@pytest.mark.parametrize(
    ("values", "key", "reason"),
    [
        ({"curriculum__rl__beta": -0.1}, "curriculum.rl.beta", "greater than or equal to 0"),
        ({"loop__rounds": 0}, "loop.rounds", "greater than 0"),
        ({"loop__margin": -1}, "loop.margin", "greater than or equal to 0"),
        ({"gap__learning_rate": 0}, "gap.learning_rate", "greater than 0"),
        ({"gap__learning_rate": "fast"}, "gap.learning_rate", "number"),
        ({"gap__terms": ["wl>www"]}, "gap.terms.0", "'wl>ww', 'wl>ll'"),
        ({"data__test": 1.0}, "data.test", "less than 1"),
        ({"data__noise": 0.1, "data__source": "pairs.jsonl"}, "data", "'noise' is for worlds"),
        ({"model__base": "somewhere"}, "model", "either 'base'"),
        ({"model": {}}, "model", "either 'base'"),
        ({"model": {"init": {"heads": 5}}}, "model", "init.heads: found 5, expected a divisor of init.hidden (96)"),
        ({"curriculum__rl__group": 5}, "curriculum.rl", "not a multiple of group 5"),
        ({"curriculum__rl__group": 1}, "curriculum.rl.group", "greater than or equal to 2"),
        ({"curriculum__rl__accumulation": 16}, "curriculum.rl", "not a multiple of group 8"),
        ({"gap__accumulation": 5}, "gap", "not a multiple of accumulation 5"),
        ({"curriculum__steps": [1]}, "curriculum", "1 entries for 2 stages"),
        ({"curriculum__steps": [1, 0]}, "curriculum.steps.1", "greater than 0"),
        ({"curriculum__stages": []}, "curriculum.stages", "at least 1"),
        ({"curriculum__stages": ["improver", "data"]}, "curriculum", "there is none yet"),
        ({"curriculum__stages": ["dta"]}, "curriculum.stages.0", "'data', 'policy' or 'improver'"),
        ({"name": "no spaces"}, "name", "pattern"),
        ({"template__ask": ""}, "template.ask", "at least 1"),
    ],
)
def test_an_impossible_value_is_refused_by_file_and_dotted_key(values, key, reason):
    message = refusal(changed(**values))
    assert f"mine.yaml: key '{key}'" in message
    assert reason in message


def test_a_missing_key_is_named():
    tree = changed()
    del tree["gap"], tree["curriculum"]["rl"]["learning_rate"]
    message = refusal(tree)
    assert "mine.yaml: key 'gap' is missing" in message
    assert "mine.yaml: key 'curriculum.rl.learning_rate' is missing" in message


def test_an_override_changes_its_own_section_and_no_section_that_shares_an_anchor(tmp_path):
    path = tmp_path / "recipe.yaml"
    rl = {**TREE["curriculum"]["rl"], "max_steps": 30}
    path.write_text(yaml.safe_dump({**TREE, "policy_rl": rl, "curriculum": {**TREE["curriculum"], "rl": rl}}))
    assert "*" in path.read_text()
    recipe = load_recipe(path, {"curriculum.rl.max_steps": "40"})
    assert (recipe.curriculum.rl.max_steps, recipe.policy_rl.max_steps) == (40, 30)


def test_overrides_reach_any_depth_and_are_read_as_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(TREE))
    recipe = load_recipe(
        path,
        {
            "curriculum.rl.beta": "0.2",
            "curriculum.stages": "[data]",
            "peft.r": "4",
            "seed": "7",
            "data.source": "x.jsonl",
        },
    )
    assert (recipe.curriculum.rl.beta, recipe.curriculum.stages, recipe.seed) == (0.2, ["data"], 7)
    assert (recipe.peft.r, recipe.data.source) == (4, "x.jsonl")
    assert recipe.gap.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"curriculum.rl.bta": "1"}, "unknown key 'curriculum.rl.bta'; did you mean 'beta'?"),
        ({"name.first": "x"}, "--set name.first: 'name' is not a section"),
        ({"seed": "[1"}, "--set seed: cannot read the value"),
        ({"loop.rounds": "0"}, "key 'loop.rounds': found 0"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path, overrides, reason):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(TREE))
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "peft", "native", "settled"),
    [
        ("auto", {}, True, "bfloat16"),
        ("auto", {}, False, "float32"),
        ("auto", None, True, "float32"),  # whole weights would lose most of their steps
        ("bfloat16", None, True, "bfloat16"),
        ("float32", {}, True, "float32"),
    ],
)
def test_auto_is_bfloat16_for_adapters_on_machines_that_have_it(dtype, peft, native, settled):
    recipe = Recipe.of(changed(model__dtype=dtype, peft=peft), "mine.yaml")
    assert recipe.with_dtype(native_bfloat16=native).model.dtype == settled


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a: [1", "broken YAML"), ("- a\n- b\n", "found list, expected a mapping of sections"), ("", "found NoneType")],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert reason in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_loads_under_its_own_name(name):
    recipe = load_recipe(find_recipe(name))
    assert recipe.name == name
    assert Recipe.of(recipe.model_dump(), "again") == recipe


def test_a_validated_recipe_cannot_be_changed():
    recipe = Recipe.of(TREE, "mine.yaml")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_each_stage_of_the_curriculum_knows_its_steps_and_the_stage_before():
    changes = {"curriculum.stages": "[data, policy, improver]", "curriculum.steps": "[3, 1, 2]"}
    recipe = load_recipe(find_recipe("quickstart"), changes)
    found = [(stage.name, stage.source, stage.rl.max_steps, stage.previous) for stage in recipe.curriculum.stage_list]
    assert found == [
        ("rl-0-data", "data", 3, None),
        ("rl-1-policy", "policy", 1, "rl-0-data"),
        ("rl-2-improver", "improver", 2, "rl-1-policy"),
    ]
    assert recipe.improver_stage == "rl-2-improver"
    assert recipe.policy_stage == "policy-sft"
    same = load_recipe(find_recipe("quickstart"), {"curriculum.steps": "null"})
    assert [stage.rl for stage in same.curriculum.stage_list] == [same.curriculum.rl] * 2
    fewer = load_recipe(find_recipe("quickstart"), {"curriculum.rl.max_steps": "5", "curriculum.steps": "null"})
    assert [stage.rl.max_steps for stage in fewer.curriculum.stage_list] == [5, 5]


def test_rl_takes_steps_and_no_epochs():
    with pytest.raises(InputError, match="'epochs' has no effect in RL, which takes max_steps"):
        load_recipe(find_recipe("quickstart"), {"curriculum.rl.epochs": "2"})


def test_a_policy_after_rlhf_needs_the_settings_of_rlhf():
    assert "model.policy rlhf needs the section policy_rl" in refusal(changed(model__policy="rlhf"))
    recipe = Recipe(**changed(model__policy="sft", policy_rl={"learning_rate": 1e-4}))
    assert (recipe.policy_stage, recipe.other_policy_stage) == ("policy-sft", "policy-rl")
    recipe = Recipe(**changed(policy_rl={"learning_rate": 1e-4}))
    assert (recipe.policy_stage, recipe.other_policy_stage) == ("policy-rl", "policy-sft")
    assert Recipe(**changed()).other_policy_stage is None


@pytest.mark.parametrize("scalar", ["2024-99-99", "!!int abc", "9" * 5_000, "[" * 5_000])
def test_a_value_that_yaml_itself_cannot_make_is_refused(tmp_path, scalar):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: {scalar}\n")
    with pytest.raises(InputError, match=r"mine\.yaml: found broken YAML"):
        load_recipe(path)
    with pytest.raises(InputError, match=r"--set template\.today: cannot read the value"):
        load_recipe(find_recipe("quickstart"), {"template.today": scalar})


def test_the_day_of_a_run_may_be_written_as_yaml_writes_days():
    for day in ("2026-01-31", "'2026-01-31'"):
        recipe = load_recipe(find_recipe("quickstart"), {"template.today": day})
        assert recipe.template.today == "2026-01-31"
        assert Recipe.of(recipe.model_dump(), "again") == recipe
    with pytest.raises(InputError, match=r"template\.today"):
        load_recipe(find_recipe("quickstart"), {"template.today": "tomorrow"})
    assert load_recipe(find_recipe("quickstart")).template.today is None


@pytest.mark.parametrize("own", ["", "    max_steps: 7\n"])
def test_a_section_may_be_merged_into_another(tmp_path, own):
    """``<<`` names an anchor. A key beside it replaces the key of the anchor, and is no key that comes twice."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "policy_rl: &rl\n  max_steps: 3\n  learning_rate: 0.5\n"
        f"curriculum:\n  rl:\n    <<: *rl\n{own}    batch_size: 8\nagain:\n  <<: *rl\n"
    )
    tree = read_tree(path, "recipe")
    assert tree["policy_rl"] == tree["again"] == {"max_steps": 3, "learning_rate": 0.5}
    assert tree["curriculum"]["rl"] == {"max_steps": 7 if own else 3, "learning_rate": 0.5, "batch_size": 8}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: {b: 1, 'b': 2}", "a: &x {b: 1}\nc: {<<: *x, d: 1, d: 2}"])
def test_a_key_that_comes_twice_is_refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="comes twice"):
        load_recipe(path)
