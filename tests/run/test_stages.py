"""A stage's fingerprint covers everything that its result depends on."""

from __future__ import annotations

import pytest

from pitlm.core.packaged_recipes import find_recipe, recipe_names
from pitlm.core.recipe_file import load_recipe
from pitlm.run.folder import fingerprints
from pitlm.run.stages import build_stages

RL = {"rl-0-data", "rl-1-policy", "evaluation", "report"}


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"loop.rounds": "5"}, {"evaluation", "report"}),
        ({"curriculum.rl.beta": "0.2"}, RL),
        ({"curriculum.rl.rollouts": "vllm-colocate"}, RL),
        ({"curriculum.rl.rollouts": "transformers"}, set()),
        # Each sample has a seed of its own, whatever is sampled beside it.
        ({"evaluation.batch_size": "64"}, set()),
        ({"evaluation.resamples": "100"}, set()),
        ({"curriculum.rl.save_every": "7", "gap.log_every": "3"}, set()),
        ({"evaluation.policy_temperature": "0.9"}, {"gap", *RL}),
        ({"evaluation.judges": "[{kind: truth}]"}, {"evaluation", "report"}),
        ({"gap.terms": "['wl>lw']"}, {"gap", *RL}),
        ({"improver_dpo": "{learning_rate: 1.0e-4}"}, {"evaluation", "report"}),
    ],
)
def test_a_change_makes_stale_what_it_reaches(change: dict[str, str], stale: set[str]) -> None:
    def prints(overrides: dict[str, str]) -> dict[str, str]:
        return fingerprints(build_stages(load_recipe(find_recipe("quickstart"), overrides)))

    before, after = prints({}), prints(change)
    assert {name for name in before if before[name] != after[name]} == stale


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"policy_rl": "{learning_rate: 1.0e-4}"},
        {"improver_dpo": "{learning_rate: 1.0e-4}"},
        {"data.source": "pairs.jsonl"},
    ],
)
def test_a_stage_reads_only_stages_before_it_and_says_what_it_trains(name: str, changes: dict[str, str]) -> None:
    recipe = load_recipe(find_recipe(name), changes)
    stages = build_stages(recipe, contents=False)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for index, stage in enumerate(stages):
        assert set(stage.needs) <= set(names[:index])
        trains = stage.task not in ("data", "evaluation", "report")
        assert (stage.section is not None) is bool(stage.folds) is trains
        assert (stage.curriculum is not None) is (stage.task == "curriculum")
    assert recipe.policy_stage in names
    assert [stage.name for stage in stages if stage.curriculum] == [s.name for s in recipe.curriculum.stage_list]


def test_no_two_models_learn_from_the_pairs_that_judge_them() -> None:
    """Where the truth is unknown, the judge shares no pair with R_P or R_PIT, and no model trains on held-out folds."""
    stages = build_stages(load_recipe(find_recipe("quickstart"), {"data.source": "pairs.jsonl"}), contents=False)
    folds = {stage.name: set(stage.folds) for stage in stages}
    assert folds["judge"]
    assert not folds["judge"] & (folds["reward"] | folds["gap"])
    assert not set().union(*folds.values()) & {"test", "validation"}
