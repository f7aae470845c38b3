"""Every stage on common architectures: Llama 3 and Qwen3 in shape, tiny in size."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.recipe import Recipe
from pitlm.engines.generators import Improver
from pitlm.models.adapters import Bases
from pitlm.models.loading import load_model, load_tokenizer
from pitlm.models.lora import base_name
from pitlm.models.scorers import GapModel
from pitlm.run.run_recipe import run_recipe

THINGS = ("lamp", "chair", "desk", "sofa", "shelf", "rug", "clock", "mirror")
GOOD = ("It is nine.", "Nine, and happy to help!", "The price is nine.")
BAD = ("Silly question.", "Read it yourself.", "Well...\n\nanyway.")
CAUSAL = ["policy-sft", "policy-rl", "improver-sft", "rl-0-data", "rl-1-policy", "rl-2-improver"]


def write_pairs(path: Path, count: int = 60) -> Path:
    """Chat pairs: some with a system turn, some with several turns."""
    rows = []
    for number in range(count):
        thing = THINGS[number % 8]
        messages = [{"role": "user", "content": f"What does {thing} {number} cost?"}]
        if number % 3 == 1:
            messages.insert(0, {"role": "system", "content": "You are a shop clerk."})
        if number % 3 == 2:
            messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, *messages]
        chosen, rejected = GOOD[number % 3], BAD[number // 3 % 3]
        rows.append({"prompt": messages, "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(base: Path, data: Path, lora: bool, quantize: str | None = None):
    train = {"learning_rate": 1e-2, "max_steps": 2, "batch_size": 4, "eval_rows": 4, "log_every": 1}
    rl = {"learning_rate": 3e-2, "max_steps": 2, "batch_size": 8, "group": 4, "beta": 0.1}
    tree = {
        "name": "tiny",
        "data": {
            "source": str(data),
            "test": 0.15,
            "validation": 0.1,
            "max_prompt_tokens": 160,
            "max_response_tokens": 40,
            "max_new_tokens": 5,
        },
        "model": {"base": str(base)},
        "policy_sft": train,
        "reward": train,
        "policy_rl": rl,
        "improver_sft": train,
        "gap": {**train, "batch_size": 2},
        "curriculum": {"stages": ["data", "policy", "improver"], "rl": rl},
        "loop": {"rounds": 2},
        "evaluation": {"items": 4, "fresh_pairs": 4, "resamples": 20},
        "report_to": [],
    }
    if lora:
        tree["peft"] = {"r": 4, "alpha": 8, "quantize": quantize}
        tree["model"]["policy"] = "sft"  # the policy after RLHF is a baseline
        tree["evaluation"]["self_refine"] = ["house_style_none"]
    if quantize:
        tree["model"]["dtype"] = "bfloat16"
    return Recipe.of(tree, "tiny")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder, load_tokenizer(folder)).state_dict()


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_stages(out: Path) -> None:
    names = [
        "data",
        "policy-sft",
        "reward",
        "judge",
        "policy-rl",
        "improver-sft",
        "gap",
        *CAUSAL[3:],
        "evaluation",
        "report",
    ]
    for name in names:
        assert json.loads((out / name / "stage.json").read_text())["status"] == "done", name
    assert (out / "report.html").stat().st_size > 10_000
    assert not list(out.glob("*/checkpoints"))


def check_checkpoints(out: Path, lora: bool) -> None:
    for name in CAUSAL:
        assert AutoConfig.from_pretrained(out / name / "model").eos_token_id is not None
    for name in ("reward", "judge", "gap"):
        if not lora:
            loading = AutoModelForSequenceClassification.from_pretrained(
                out / name / "model", output_loading_info=True
            )[1]
            assert not loading["missing_keys"]
        config = AutoConfig.from_pretrained(out / name / "model")
        assert config.num_labels == 1
        tokenizer = AutoTokenizer.from_pretrained(out / name / "model")
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
    for name in (*CAUSAL, "reward", "judge", "gap"):
        (file,) = (path.relative_to(out / name) for path in (out / name).rglob("*.safetensors"))
        assert str(file) == f"model/{'adapter_model' if lora else 'model'}.safetensors"


def check_learning(out: Path, base: Path) -> None:
    """Every stage changed its model, and each began from the right model."""
    before = weights(base)
    for name, start in {
        "policy-sft": base,
        "improver-sft": base,
        "policy-rl": out / "policy-sft" / "model",
        "rl-0-data": out / "improver-sft" / "model",
        "rl-1-policy": out / "rl-0-data" / "model",
        "rl-2-improver": out / "rl-1-policy" / "model",
    }.items():
        began = before if start == base else weights(start)
        ended = weights(out / name / "model")
        moved = max((ended[key] - weight).abs().max().item() for key, weight in began.items())
        assert 0 < moved < 0.2, name


def check_anchor(out: Path) -> None:
    """At the start of stage 0 KL is zero. Later stages start away from the anchor, and their KL shows that."""
    kl = {name: [row["kl"] for row in metrics(out / name) if "kl" in row] for name in (*CAUSAL[3:], "policy-rl")}
    assert all(len(steps) == 2 and all(math.isfinite(value) for value in steps) for steps in kl.values())
    # The first step's KL is the signed estimate of one small batch. Away from the anchor it may be anything except
    # zero, so one tolerance separates the two cases.
    nothing = pytest.approx(0.0, abs=1e-5)
    assert kl["rl-0-data"][0] == nothing
    assert kl["policy-rl"][0] == nothing
    assert kl["rl-1-policy"][0] != nothing
    assert kl["rl-2-improver"][0] != nothing


def check_adapters(out: Path, base: Path) -> None:
    """With LoRA only matrices under adapters differ from the base, and the difference has low rank."""
    anchor = {"policy-sft": base, "improver-sft": base, "policy-rl": out / "policy-sft" / "model"}
    for name in CAUSAL:
        under, merged = weights(anchor.get(name, out / "improver-sft" / "model")), weights(out / name / "model")
        for key, weight in under.items():
            if "_proj" not in key:
                assert torch.equal(merged[key], weight), f"{name}: {key}"
            elif (difference := merged[key] - weight).abs().max() > 0:
                values = torch.linalg.svdvals(difference.double())
                assert (values[4:] < 1e-5).all(), f"{name}: {key}"
        over = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / name / "model")
        for key, weight in over.merge_and_unload().state_dict().items():
            torch.testing.assert_close(merged[key], weight, rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")
    for name in ("reward", "judge", "gap"):
        assert base_name(out / name / "model") == str(base)


def check_use(out: Path) -> None:
    """The two models that a user keeps work together."""
    bases = Bases()
    improver = Improver.from_pretrained(out / "rl-2-improver" / "model", bases=bases)
    gap = GapModel.from_pretrained(out / "gap" / "model", bases=bases)
    x = Prompt.of("What does the lamp cost?")
    answer = improver.propose([x], ["Silly question."])[0]
    assert 0 < answer.generated_tokens <= 5
    assert math.isfinite(gap.gap(x, answer.text, "Silly question."))


def check_references(out: Path) -> None:
    """Stage 0 takes both responses of the data; later stages take a model's answers."""
    known = {*GOOD, *BAD}
    for name, from_data in (("rl-0-data", True), ("rl-1-policy", False), ("rl-2-improver", False)):
        rows = [json.loads(line) for line in (out / name / "references.jsonl").read_text().splitlines()]
        assert len(rows) == 4
        assert all((row["reference"] in known) is from_data for row in rows)


@pytest.mark.parametrize(
    ("family", "lora", "quantize"),
    [
        ("llama3", True, None),
        ("qwen3", False, None),
        pytest.param("llama3", False, None, marks=pytest.mark.slow),
        pytest.param("qwen3", True, None, marks=pytest.mark.slow),
        pytest.param("qwen3", True, "nf4", marks=pytest.mark.slow),
    ],
)
def test_every_stage_runs(bases, tmp_path, family, lora, quantize):
    base, out = bases(family), tmp_path / "run"
    original = {path.name: path.read_bytes() for path in base.iterdir()}
    data = write_pairs(tmp_path / "pairs.jsonl")
    run_recipe(recipe(base, data, lora, quantize), out)
    check_stages(out)
    check_checkpoints(out, lora)
    check_learning(out, base)
    check_anchor(out)
    check_references(out)
    check_use(out)
    if lora and not quantize:  # saving in 16 bits rounds
        check_adapters(out, base)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == original


def test_a_base_whose_window_is_too_short_is_refused_before_anything_is_spent(bases, tmp_path):
    tree = recipe(bases("llama3"), write_pairs(tmp_path / "pairs.jsonl"), lora=False).model_dump()
    tree["data"] |= {"max_prompt_tokens": 385, "max_response_tokens": 40}  # 385 + 2 * 40 + 48 = 513
    with pytest.raises(InputError, match="found a window of 512 tokens, expected at least 513"):
        run_recipe(Recipe.of(tree, "tiny"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_base_with_other_tokens_is_refused_before_anything_is_spent(bases, tmp_path):
    tree = recipe(bases("llama3"), write_pairs(tmp_path / "pairs.jsonl"), lora=False).model_dump()
    tree["model"]["reward_base"] = str(bases("qwen3"))
    with pytest.raises(
        InputError, match=r"model\.reward_base: found .*, whose vocabulary is not that of .*, expected the"
    ):
        run_recipe(Recipe.of(tree, "tiny"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("targets", "named"), [(["q_proj", "nope"], "nope"), ("layers.*", "layers.*")])
def test_adapters_beside_modules_that_are_not_there_are_refused_before_anything_is_spent(
    bases, tmp_path, targets, named
):
    tree = recipe(bases("llama3"), write_pairs(tmp_path / "pairs.jsonl"), lora=True).model_dump()
    tree["peft"]["target_modules"] = targets
    with pytest.raises(InputError, match=rf"peft\.target_modules: found {re.escape(named)}, which no .*q_proj"):
        run_recipe(Recipe.of(tree, "tiny"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_an_embedding_that_is_also_the_head_is_refused(bases, tmp_path):
    """Merged, it would change the head, which is not what was trained."""
    tree = recipe(bases("qwen3"), write_pairs(tmp_path / "pairs.jsonl"), lora=True).model_dump()
    tree["peft"]["target_modules"] = ["q_proj", "embed_tokens"]
    with pytest.raises(
        InputError, match=r"peft\.target_modules: found embed_tokens, the embedding of .* also its head"
    ):
        run_recipe(Recipe.of(tree, "tiny"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_base_without_pad_and_chat_template_runs_and_a_second_run_skips(bases, tmp_path, capsys):
    """A plain base model pads with its end token, so every stage adds one token to the base."""
    data = write_pairs(tmp_path / "pairs.jsonl", 40)
    tree = recipe(bases("gpt"), data, lora=False).model_dump()
    tree["policy_rl"] = None
    tree["curriculum"]["stages"] = ["data"]
    tree["curriculum"]["rl"]["beta"] = 0.0
    tree["curriculum"]["rl"]["truncated_penalty"] = None  # hardly any sample ends, so some steps have no reward
    tiny = Recipe.of(tree, "tiny")
    run_recipe(tiny, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
    first = capsys.readouterr().out
    run_recipe(tiny, tmp_path / "run")
    second = capsys.readouterr().out
    assert "0 of 9 stages run" in second
    assert "9 of 9 stages run" in first
