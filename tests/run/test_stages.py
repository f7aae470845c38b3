"""What a stage's outcome depends on is in its fingerprint."""

from __future__ import annotations

import pytest

from pitlm.core.packaged_recipes import find_recipe
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
        # The fresh answers of the gap stage and the references of the RL stages are sampled in such batches.
        ({"evaluation.batch_size": "64"}, {"gap", *RL}),
        ({"evaluation.policy_temperature": "0.9"}, {"gap", *RL}),
        ({"evaluation.judges": "[{kind: truth}]"}, {"evaluation", "report"}),
    ],
)
def test_a_change_makes_stale_what_it_reaches(change: dict[str, str], stale: set[str]) -> None:
    def prints(overrides: dict[str, str]) -> dict[str, str]:
        return fingerprints(build_stages(load_recipe(find_recipe("quickstart"), overrides)))

    before, after = prints({}), prints(change)
    assert {name for name in before if before[name] != after[name]} == stale
