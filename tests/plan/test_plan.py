"""The planner's arithmetic: published counts, hand arithmetic, invariances."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from pitlm.core.errors import InputError
from pitlm.core.packaged_recipes import RECIPES, find_recipe, recipe_names
from pitlm.core.recipe import LoraSection
from pitlm.core.recipe_file import load_recipe
from pitlm.core.training_sections import TrainSection
from pitlm.plan.costs import Costs, Reading, StagePlan
from pitlm.plan.hardware import CARDS, Hardware, assumed
from pitlm.plan.plan import PLANNERS, plan_run
from pitlm.plan.sizes import KNOWN, WORLDS, Shape, Workload, known_workload
from pitlm.run.stages import Task, build_stages

ROOT = Path(__file__).parents[2]
SMALL = Shape(layers=2, hidden=4, mlp=8, heads=2, kv_heads=1, head_dim=2, vocabulary=10, tied=True)
FLAT = Hardware("flat", 1e12, train_flops=1e6, forward_flops=2e6, decode_flops=1e6, bandwidth=1e9)
WORK = Workload(1_000, prompt=20, chosen=10, rejected=10, marks=2)


def recipe(name="quickstart", **changes):
    loaded = load_recipe(find_recipe(name), {key.replace("__", "."): value for key, value in changes.items()})
    return loaded.with_dtype(native_bfloat16=True)


def stages(given, shape=SMALL, work=WORK, hardware=FLAT):
    return {stage.name: stage for stage in plan_run(given, shape, work, hardware).stages}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
    ],
)
def test_parameters_are_those_that_the_model_cards_state(name, published):
    assert KNOWN[name].parameters == published


def test_a_small_shape_by_hand():
    # A layer: q 4x4, k and v 4x2 each, o 4x4, three matrices 4x8; two norms of 4. Then one more norm and the embedding.
    assert SMALL.linear == 2 * (16 + 8 + 8 + 16 + 96)
    assert SMALL.parameters == SMALL.linear + 40 + 2 * 8 + 4
    # Rank 1: in + out of each matrix.
    assert SMALL.lora(LoraSection(r=1)) == 2 * ((4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 8))
    assert SMALL.lora(LoraSection(r=3, target_modules=["v_proj", "down_proj"])) == 3 * 2 * ((4 + 2) + (8 + 4))
    upper = LoraSection(r=1, target_modules=r".*layers\.1\..*_proj")
    assert SMALL.lora(upper) == SMALL.lora(LoraSection(r=1)) / 2
    assert [SMALL.trained_share(peft) for peft in (None, LoraSection(), upper)] == [1, 1, 0.5]
    assert SMALL.kv_elements == 2 * 2 * 1 * 2


def test_a_step_of_full_training_is_six_flop_a_weight_and_token():
    tally = StagePlan("any")
    costs = Costs(recipe(), SMALL, WORK, replace(FLAT, step_seconds=0.5))
    costs.learn(tally, TrainSection(learning_rate=1e-3), 3, Reading(100, context=0, headed=100))
    assert tally.trained == 300
    assert tally.flops == 3 * 6 * 100 * (SMALL.linear + SMALL.head)
    assert tally.seconds == pytest.approx(3 * 0.5 + tally.flops / 1e6)


def test_adapters_spare_a_third_and_recomputing_costs_it_again():
    def flops(**changes):
        return stages(recipe(**changes))["policy-sft"].flops

    full = flops()
    held = full - flops(policy_sft__epochs="1.0")  # one epoch, without evaluation
    adapters = flops(peft__r="4") - flops(peft__r="4", policy_sft__epochs="1.0")
    again = {"policy_sft__gradient_checkpointing": "true"}
    recomputed = flops(**again) - flops(policy_sft__epochs="1.0", **again)
    assert adapters / held == pytest.approx(2 / 3)
    assert recomputed / held == pytest.approx(4 / 3)


def test_layers_below_all_adapters_are_read_forward_only():
    hardware = replace(FLAT, layer_seconds=0.3)
    tallies = []
    for targets in ("all-linear", r".*layers\.1\..*_proj"):
        costs = Costs(recipe(peft__target_modules=json.dumps(targets)), SMALL, WORK, hardware)
        tallies.append(StagePlan("any"))
        costs.learn(tallies[-1], TrainSection(learning_rate=1e-3), 3, Reading(100, context=0))
    every, upper = tallies
    assert every.flops == 3 * 100 * 4 * SMALL.linear
    assert upper.flops == every.flops * 3 / 4  # half of the layers are not passed backward
    assert every.seconds == pytest.approx(every.flops / 1e6 + 3 * 2 * 0.3)
    # The lower layer at the rate of reading, twice that of training, and with a third of the launches.
    assert upper.seconds == pytest.approx(every.flops / 2 / 1e6 + every.flops / 4 / 2e6 + 3 * (0.3 + 0.1))


def test_decoding_reads_the_weights_once_a_step():
    hardware = replace(FLAT, forward_flops=1e30, decode_flops=1e30)
    costs = Costs(recipe(), SMALL, WORK, hardware)
    tally = StagePlan("any")
    costs.write(tally, rows=10, prompt=0, batch=5)
    steps = 2 * costs.y + costs.y  # five at a time; the last answer is twice as long as the others
    cache = 10 * costs.y * costs.y / 2 * SMALL.kv_elements * 4
    assert tally.generated == 10 * costs.y
    assert tally.seconds == pytest.approx((steps * (SMALL.linear + SMALL.head) * 4 + cache) / 1e9)


def test_more_pairs_are_read_in_proportion_and_rl_by_its_steps():
    once, tenfold = (stages(recipe(data__pairs="null"), work=replace(WORK, pairs=n)) for n in (10_000, 100_000))
    for name in ("policy-sft", "reward", "gap"):
        assert tenfold[name].trained / once[name].trained == pytest.approx(10, rel=0.02)  # whole steps
    assert tenfold["rl-0-data"].trained == once["rl-0-data"].trained


def test_rl_is_planned_with_the_answers_that_it_samples():
    known = stages(recipe(), work=replace(WORK, sampled=5))
    for name, stage in stages(recipe()).items():  # answers of ten tokens and the end token
        assert known[name].generated == pytest.approx(stage.generated * (5 / 11 if name.startswith("rl-") else 1))
        assert known[name].peak == stage.peak


def test_steps_that_are_set_are_planned_even_beyond_the_data():
    once, more = (stages(recipe(gap__max_steps=steps))["gap"] for steps in ("10", "5000"))
    assert more.trained == 500 * once.trained


def test_the_judge_reads_the_samples_of_rl_where_no_truth_is_known():
    known, judged = recipe(), recipe(data__source="pairs.jsonl")
    costs, rl = Costs(judged, SMALL, WORK, FLAT), judged.curriculum.rl
    groups = rl.batch_size / rl.group
    each = costs.forward(Reading(groups * costs.x + rl.batch_size * costs.y, costs.beside / 2 + costs.y))
    for name, steps in (("rl-0-data", 80), ("rl-1-policy", 40)):
        assert stages(judged)[name].flops - stages(known)[name].flops == pytest.approx(steps * each)


def test_the_shares_of_the_folds_are_planned() -> None:
    even, mostly_reward = (stages(recipe(data__folds=folds)) for folds in ("[1, 1, 1]", "[1, 4, 1]"))
    assert mostly_reward["gap"].trained / even["gap"].trained == pytest.approx(2, rel=0.05)  # whole steps
    assert mostly_reward["policy-sft"].trained / even["policy-sft"].trained == pytest.approx(0.5, rel=0.05)


def test_devices_divide_arithmetic_and_weights():
    given, shape = recipe("hh-llama-8b"), KNOWN["meta-llama/Llama-3.1-8B-Instruct"]
    one, four = (stages(given, shape, WORK, replace(FLAT, devices=n, stage_seconds=0, row_seconds=0)) for n in (1, 4))
    assert one["reward"].seconds / four["reward"].seconds == pytest.approx(4)
    assert one["evaluation"].peak - 1e9 == pytest.approx(4 * (four["evaluation"].peak - 1e9))


def test_a_process_on_a_processor_keeps_kernels_and_the_memory_of_earlier_stages():
    given, shape = recipe("smol", model__dtype="bfloat16"), KNOWN["HuggingFaceTB/SmolLM2-135M-Instruct"]
    card, processor = (stages(given, shape, WORK, replace(FLAT, kernels=kernels)) for kernels in (0, 2e9))
    least = 0.0
    for name, stage in processor.items():
        least = max(least, card[name].peak + 2e9)
        assert stage.peak == pytest.approx(least)
    assert processor["evaluation"].peak > card["evaluation"].peak + 2e9


def test_a_bfloat16_model_in_full_training_takes_eight_bytes_a_parameter():
    costs = Costs(recipe(model__dtype="bfloat16"), SMALL, WORK, FLAT)
    assert costs.states() == 8 * SMALL.parameters
    assert Costs(recipe(), SMALL, WORK, FLAT).states() == 16 * SMALL.parameters


def test_models_that_are_only_read_share_one_base_with_lora_and_none_without():
    whole = SMALL.parameters
    adapters = 2 * SMALL.lora(LoraSection(r=16)) * 4  # two stages, in float32
    for changes, held in (
        ({}, 3 * whole * 2),
        ({"peft": "{}"}, whole * 2 + 3 * adapters),
        ({"peft": "{}", "model__reward_base": "other"}, 2 * whole * 2 + 3 * adapters),
    ):
        assert Costs(recipe(model__dtype="bfloat16", **changes), SMALL, WORK, FLAT).readers(3) == held
    four = Costs(recipe(model__dtype="bfloat16", peft="{quantize: nf4}"), SMALL, WORK, FLAT)
    # A block of 64 weights: 32 bytes, a constant of one byte, and a 256th of 4 bytes for the constants' own.
    linear = SMALL.linear * (32 + 1 + 4 / 256) / 64
    assert four.weights(1) == pytest.approx(linear + (whole - SMALL.linear) * 2)


def test_everything_that_a_stage_can_do_is_planned_but_the_report():
    assert set(PLANNERS) == {*get_args(Task)} - {"report"}


def test_the_plan_counts_the_systems_that_the_recipe_compares():
    """Without baselines the plan has no further answers, and fewer proposals and scores."""
    everything, alone = (stages(recipe(**changes))["evaluation"] for changes in ({}, {"evaluation__baselines": "[]"}))
    assert alone.generated < everything.generated
    assert alone.flops < everything.flops
    one = stages(recipe(evaluation__baselines="[sft-loop]"))["evaluation"]
    assert alone.generated < one.generated < everything.generated


def test_the_plan_needs_no_torch():
    script = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing either fails
from pitlm.cli.main import main
main(["doctor", "hh-llama-8b", "--hardware", "h100", "--plan"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "evaluation" in done.stdout


@pytest.mark.parametrize("name", recipe_names())
def test_the_plan_has_the_stages_of_the_run(name):
    given = recipe(name)
    work, _ = known_workload(given)
    built = [stage.name for stage in build_stages(given) if stage.name != "report"]
    assert list(stages(given, Shape.of_model(given.model), work, assumed("h200", given.model.dtype))) == built


def test_the_pocket_world_has_the_lengths_that_are_planned_with():
    from pitlm.worlds.pocket import make_preferences, vocabulary

    pairs = make_preferences(2_000, seed=0)
    for name, planned in (("chosen", WORLDS["pocket"].chosen), ("rejected", WORLDS["pocket"].rejected)):
        mean = sum(len(getattr(pair, name).split()) for pair in pairs) / len(pairs)
        assert mean == pytest.approx(planned, rel=0.03)
    mean = sum(len(pair.prompt.text.split()) for pair in pairs) / len(pairs)
    assert mean == pytest.approx(WORLDS["pocket"].prompt, rel=0.03)
    words = {*vocabulary(), "better"}
    assert Shape.of_model(recipe().model).vocabulary == len(words) + 6


@pytest.fixture(scope="module")
def scale():
    """The script that writes the planner's figures into docs/scale.md and the recipes."""
    spec = importlib.util.spec_from_file_location("scale_tables", ROOT / "docs" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_comments_of_recipes_say_what_the_planner_says(path, scale):
    given, text = load_recipe(path).with_dtype(native_bfloat16=True), path.read_text()
    planned = [line for line in text.splitlines() if line.startswith("# Planned")]
    assert planned == ([scale.recipe_note(given)] if given.model.base else [])


def test_the_tables_of_the_document_are_the_planners(scale):
    text = scale.DOCUMENT.read_text()
    assert scale.filled(text) == text
    assert text.count("<!-- end -->") == len(scale.TABLES)
    assert all(len(make().splitlines()) > 3 and make() in text for make in scale.TABLES.values())
    for line in scale.where_table().splitlines()[2:]:
        assert sum(float(share) for share in line.replace("%", "").split("|")[2:-1]) == pytest.approx(100, abs=3)


def test_shapes_come_from_configurations(tmp_path):
    sizes = {
        "model_type": "qwen3",
        "hidden_size": 4_096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    assert Shape.of_model(recipe(model__init="null", model__base=str(tmp_path)).model) == KNOWN["Qwen/Qwen3-8B"]
    del sizes["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(InputError, match=r"config.json: cannot load a configuration of a decoder: no 'hidden_size'"):
        Shape.of_model(recipe(model__init="null", model__base=str(tmp_path)).model)


def test_a_model_of_unknown_shape_is_refused():
    with pytest.raises(InputError, match="no hub is asked"):
        Shape.of_model(recipe(model__init="null", model__base="some/model").model)


def test_a_card_is_slower_in_float32():
    for name in CARDS:
        assert assumed(name, "float32").train_flops < assumed(name, "bfloat16").train_flops
