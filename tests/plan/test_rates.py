"""The machine's rates, and the planner's counts against real models and forests."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pitlm.core.errors import InputError
from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.models.forest import Forest
from pitlm.plan import rates
from pitlm.plan.costs import tree_tokens
from pitlm.plan.plan import plan_run
from pitlm.plan.rates import measure_rates
from pitlm.plan.sizes import Shape, known_workload


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("qwen2", False), ("qwen3", True)])
def test_parameters_are_those_of_the_model(kind, tied):
    config = AutoConfig.for_model(
        kind,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=100,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert Shape.of_config(config.to_dict(), kind).parameters == model.num_parameters()


def test_a_tree_has_the_tokens_that_are_planned_with():
    x, w, l, marks = [1, 2, 3, 4], [5, 6, 7], [8, 9], [10, 11]
    rows = [x + reference + marks + y for reference in (w, l) for y in (w, l)]
    assert Forest.of(rows * 2).input_ids_1T.shape[1] == tree_tokens(len(x), len(w), len(l), len(marks))


def test_a_measured_machine_gives_a_plan():
    small = {"model.init": "{layers: 1, hidden: 8, heads: 2, mlp: 8}", "policy_sft.batch_size": "8"}
    recipe = load_recipe(find_recipe("quickstart"), small)
    work, _ = known_workload(recipe)
    before = torch.random.get_rng_state()
    hardware = measure_rates(recipe, work)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert hardware.measured
    assert min(hardware.train_flops, hardware.forward_flops, hardware.decode_flops, hardware.bandwidth) > 0
    assert hardware.memory > 1e8
    assert hardware.step_seconds >= 0
    plan = plan_run(recipe, Shape.of_model(recipe.model), work, hardware)
    assert all(stage.seconds > 0 for stage in plan.stages)


def test_a_large_model_is_not_measured_on_a_processor(monkeypatch):
    monkeypatch.setattr(rates, "device", lambda: torch.device("cpu"))
    recipe = load_recipe(find_recipe("hh-llama-8b"))
    with pytest.raises(InputError, match=r"8\.0 billion parameters and no GPU.*--hardware"):
        measure_rates(recipe, known_workload(recipe)[0])
