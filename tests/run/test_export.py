"""`pit export` at the command line: others load exactly the run's model, and its card tells its origin."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import FAMILIES, LLAMA3_TEMPLATE, QWEN3_TEMPLATE, generator_checkpoint, scorer_checkpoint
from hub_server import HubServer, Repository
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pitlm.cli.main import main
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Improvement, Prompt
from pitlm.engines.generators import Improver
from pitlm.loop.calibration import Calibration, load_calibrations, save_calibrations
from pitlm.models.checkpoint_export import sampling
from pitlm.models.loading import Card, load_model, load_tokenizer, save
from pitlm.models.lora import base_name
from pitlm.models.scorers import GapModel, GuardedGap, RewardModel
from pitlm.run.folder import stored_recipe
from pitlm.run.results import run_report

PROMPT = "lamp : price nine color red size small . price ?"
ITEMS = [Improvement(Prompt.of(PROMPT), "price sixty .", y) for y in ("price nine .", "happy to help . price nine .")]
CONVERSATION = Prompt.of(
    [
        {"role": "system", "content": "You are a shop clerk."},
        {"role": "user", "content": "what is the price ?"},
        {"role": "assistant", "content": "of what ?"},
        {"role": "user", "content": "of the red lamp ?"},
    ]
)


@pytest.fixture
def pit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process; return exit code, stdout, stderr."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(str(stop.value.code)), said.out, said.err

    return call


@pytest.fixture(scope="module")
def lora_run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as with LoRA: its improver is an adapter over the base, with random weights."""
    run = Path(shutil.copytree(tiny_run.root, tmp_path_factory.mktemp("lora") / "run"))
    base, folder = run / "data" / "base", run / "rl-1-policy"
    tokenizer = load_tokenizer(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
        wrapped = get_peft_model(load_model(base, tokenizer), settings)
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    shutil.rmtree(folder / "model")
    card = Card("improver", "better", 16)
    save(wrapped, tokenizer, card, folder / "model", start=base)
    save(wrapped.merge_and_unload(), tokenizer, card, run / "merged")  # by PEFT
    return run


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def assert_no_path(folder: Path, *machines: Path) -> None:
    """No written file names a path of this machine."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".md", ".jinja"):
            text = path.read_text(encoding="utf-8")
            assert set(re.findall(r"(?<![\w.:/<])(?:/[\w.-]+){2,}", text)) <= {"/v1/score"}, path.name
            assert not any(str(machine) in text for machine in machines), path.name


# -- the models


def test_the_improver_of_a_run_is_the_same_elsewhere(pit, tiny_run, tmp_path):
    out = tmp_path / "deep" / "improver"
    code, said, error = pit("export", tiny_run.root, "-o", out)
    assert (code, said, error) == (0, f"Exported improver: {out}\n", "")
    source = tiny_run.root / "rl-1-policy" / "model"
    ours, theirs = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and theirs[name].dtype == torch.float32 for name in ours)
    before, after = Improver.from_pretrained(source), Improver.from_pretrained(out)
    x, y = Prompt.of(PROMPT), "silly question . price nine ."
    assert after.encode(x, y) == before.encode(x, y)
    assert after.propose([x], [y], temperature=0.4, seed=3) == before.propose([x], [y], temperature=0.4, seed=3)
    # Other users may read the folder, and no temporary file stays beside it.
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["improver"]


def test_transformers_alone_improves_with_it(pit, tiny_run, tmp_path):
    """Without our arguments and without the ask, as a server handles a conversation that ends with the response."""
    pit("export", tiny_run.root, "-o", tmp_path / "improver")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "improver")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "improver")
    assert model.config.use_cache
    y = "silly question . price nine ."
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": y}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**asked, do_sample=False, top_k=None, top_p=None, temperature=None)
    text = tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    improver = Improver.from_pretrained(tiny_run.root / "rl-1-policy" / "model")
    assert text == improver.propose([Prompt.of(PROMPT)], [y], temperature=0)[0].text
    with torch.random.fork_rng():
        torch.manual_seed(5)
        sampled = model.generate(**asked)  # from generation_config.json
    assert asked["input_ids"].shape[1] < sampled.shape[1] <= asked["input_ids"].shape[1] + 16
    known = model.generation_config
    assert (known.do_sample, known.temperature, known.top_p, known.top_k) == (True, 0.4, 1.0, model.config.vocab_size)
    assert (known.max_new_tokens, known.eos_token_id, known.pad_token_id) == (
        16,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )


def test_pitlm_itself_improves_with_what_it_exported(pit, tiny_run, tmp_path):
    for model in ("improver", "gap"):
        assert pit("export", tiny_run.root, "--model", model, "-o", tmp_path / model)[0] == 0
    models = ("--improver", tmp_path / "improver", "--gap", tmp_path / "gap")
    asked = ("improve", "--prompt", PROMPT, "--response", "silly question . price nine .")
    ours, theirs = pit(*asked, "--run", tiny_run.root, "--gap", tiny_run.root / "gap" / "model"), pit(*asked, *models)
    assert theirs == ours
    assert ours[0] == 0


def test_the_gap_model_gives_the_same_gaps_and_takes_its_calibration_along(pit, tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run.root, tmp_path / "run"))
    found = Calibration(GapModel.name, 0.25, 0.02, 0.9, 60, "true utility", LoopSection(rounds=2), (0.5,), (1.0,))
    hopeless = replace(found, scorer=GuardedGap.name, margin=math.inf)
    save_calibrations(run / "gap" / "model", {GapModel.name: found, GuardedGap.name: hopeless})
    assert pit("export", run, "--model", "gap", "-o", tmp_path / "gap")[0] == 0
    ours, theirs = (GapModel.from_pretrained(folder) for folder in (run / "gap" / "model", tmp_path / "gap"))
    assert torch.equal(ours.gaps(ITEMS), theirs.gaps(ITEMS))
    assert load_calibrations(tmp_path / "gap") == {GapModel.name: found, GuardedGap.name: hopeless}
    assert not (tmp_path / "gap" / "generation_config.json").exists()
    text = " ".join(card_of(tmp_path / "gap").text.split())
    assert "With R_PIT, a margin of 0.25 makes at most 2.0% of the answers worse, with confidence 90%" in text
    assert "on 60 fresh answers, for up to 2 rounds" in text
    assert "With R_PIT and R_P, no margin makes at most 2.0% of the answers worse with confidence 90%" in text
    assert "so the loop changes nothing" in text
    # The improver's card has the promise too, because the loop needs both models.
    pit("export", run, "-o", tmp_path / "improver")
    assert "The promise of the margin" in card_of(tmp_path / "improver").text
    assert not (tmp_path / "improver" / "calibration.json").exists()


def test_the_reward_model_and_the_policy(pit, tiny_run, tmp_path):
    for model, stage in (("reward", "reward"), ("policy", "policy-sft")):
        assert pit("export", tiny_run.root, "--model", model, "-o", tmp_path / model)[0] == 0
        assert f"stage `{stage}`" in card_of(tmp_path / model).text
    x, y = [Prompt.of(PROMPT)], ["price nine ."]
    ours, theirs = (
        RewardModel.from_pretrained(folder) for folder in (tiny_run.root / "reward" / "model", tmp_path / "reward")
    )
    assert torch.equal(ours.scores(x, y), theirs.scores(x, y))
    assert GenerationConfig.from_pretrained(tmp_path / "policy").temperature == 1.0  # evaluation.policy_temperature
    policy = AutoTokenizer.from_pretrained(tmp_path / "policy")
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "price nine ."}]
    asked = policy.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert "better" not in asked  # a policy gets no ask


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_cast_once(pit, tiny_run, tmp_path, dtype):
    assert pit("export", tiny_run.root, "--dtype", dtype, "-o", tmp_path / "half")[0] == 0
    wanted = getattr(torch, dtype)
    ours = load_file(tiny_run.root / "rl-1-policy" / "model" / "model.safetensors")
    theirs = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(theirs[name], weight.to(wanted)) for name, weight in ours.items())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype
    assert f"Measured in float32; these weights are {dtype}." in card_of(tmp_path / "half").text
    # Exported again from outside a run: dtype and temperature stay.
    pit("export", tmp_path / "half", "-o", tmp_path / "again")
    for name in ("model.safetensors", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "half" / name).read_bytes(), name


def test_greedy_is_said_as_transformers_says_it(bases, tmp_path):
    tokenizer = load_tokenizer(bases("llama3"))
    card = Card("improver", "better", 7)
    for temperature, sampled in ((0.0, (False, None, None)), (0.7, (True, 0.7, 999))):
        sampling(tokenizer, card, temperature, 999).save_pretrained(tmp_path)
        known = GenerationConfig.from_pretrained(tmp_path)
        assert (known.do_sample, known.temperature, known.top_k) == sampled
        assert (known.top_p, known.max_new_tokens, known.eos_token_id) == (1.0, 7, tokenizer.eos_token_id)
        known.save_pretrained(tmp_path)  # strict: contradicting flags raise


# -- the chat template

SHAPES = {"": None, "llama3": LLAMA3_TEMPLATE, "qwen3": QWEN3_TEMPLATE, "indented": "\n  " + QWEN3_TEMPLATE}


@pytest.mark.parametrize(
    ("family", "shape"),
    [(family, shape) for family in FAMILIES for shape in SHAPES if not shape or family in ("llama3", "qwen3", "gpt")],
)
def test_a_server_shows_the_improver_what_pitlm_shows_it(pit, bases, tmp_path, family, shape):
    """Token by token, for each family's own template and for common shapes of templates."""
    source = generator_checkpoint(bases(family), tmp_path / "model", "improver")
    if SHAPES[shape] is not None:
        (source / "chat_template.jinja").write_text(SHAPES[shape])
    assert pit("export", source, "-o", tmp_path / "out")[0] == 0
    improver = Improver.from_pretrained(source, weights=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

    def shown(turns: list[dict[str, str]], **more: Any) -> list[int]:
        return list(tokenizer.apply_chat_template(turns, return_dict=True, **more)["input_ids"])

    for x, y in ((CONVERSATION, "silly question ."), (Prompt.of("is it small ?"), " it is \n\n  small. ")):
        turns = [*x.as_messages(), {"role": "assistant", "content": y}]
        assert shown(turns, add_generation_prompt=True) == improver.encode(x, y)
        # The template appends nothing to a conversation that ends with a user's turn, such as the ask.
        assert shown(improver.template.improver_messages(x, y), add_generation_prompt=True) == improver.encode(x, y)
        plain = improver.tokenizer.apply_chat_template(
            x.as_messages(), add_generation_prompt=True, return_dict=True, enable_thinking=False
        )
        assert shown(x.as_messages(), add_generation_prompt=True) == list(plain["input_ids"])
        # It appends nothing where no answer is wanted.
        told = improver.tokenizer.apply_chat_template(turns, return_dict=True, enable_thinking=False)
        assert shown(turns) == list(told["input_ids"])
    assert Improver.from_pretrained(tmp_path / "out").encode(CONVERSATION, "no .") == improver.encode(
        CONVERSATION, "no ."
    )


def test_nobody_thinks_aloud(pit, bases, tmp_path):
    """Servers pass no enable_thinking. If a client passes it, the template ignores it: training had no thinking."""
    for kind in ("improver", "policy"):
        generator_checkpoint(bases("qwen3"), tmp_path / kind / "in", kind)
        assert pit("export", tmp_path / kind / "in", "-o", tmp_path / kind / "out")[0] == 0
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / kind / "out")
        for more in ({}, {"enable_thinking": True}):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False, **more
            )
            assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


# -- adapters


def test_an_adapter_is_one_that_peft_loads_over_the_base(pit, lora_run, tmp_path):
    out = tmp_path / "adapter"
    assert pit("export", lora_run, "--adapter", "-o", out)[0] == 0
    assert not (out / "model.safetensors").exists()
    model, tokenizer = lora_run / "rl-1-policy" / "model", AutoTokenizer.from_pretrained(out)
    base = AutoModelForCausalLM.from_pretrained(lora_run / "data" / "base")
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    want = AutoModelForCausalLM.from_pretrained(lora_run / "merged")(input_ids=ids).logits
    assert (base(input_ids=ids).logits - want).abs().max() > 1e-2
    torch.testing.assert_close(PeftModel.from_pretrained(base, out)(input_ids=ids).logits, want, rtol=1e-4, atol=1e-4)
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "price nine ."}]
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"] == Improver.from_pretrained(
        model, weights=False
    ).encode(Prompt.of(PROMPT), "price nine .")
    card = card_of(out)
    metadata = card.data.to_dict()
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("peft", "text-generation")
    assert "a LoRA adapter of rank 3 over `base`" in card.text
    assert str(lora_run) not in card.content
    # pitlm opens the adapter where the base is available, but cannot make whole weights from it.
    asked = ("improve", "--prompt", PROMPT, "--response", "price nine .", "--gap", lora_run / "gap" / "model")
    assert pit(*asked, "--improver", out) == pit(*asked, "--improver", model)
    code, _, error = pit("export", out, "-o", tmp_path / "again")
    assert (code, "found an adapter that was exported, expected whole weights" in error) == (2, True)


@pytest.mark.parametrize("source", ["run", "copy"])
def test_an_export_has_the_merged_weights_of_an_adapter(pit, lora_run, tmp_path, source):
    """Wherever the adapter lies."""
    folder = lora_run
    if source == "copy":
        folder = shutil.copytree(lora_run / "rl-1-policy" / "model", tmp_path / "copy")
    assert pit("export", folder, "-o", tmp_path / "whole")[0] == 0
    assert_no_path(tmp_path / "whole", lora_run)
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    ours, peft = (load_file(place / "model.safetensors") for place in (tmp_path / "whole", lora_run / "merged"))
    assert ours.keys() == peft.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in peft.items())
    in_memory = load_model(lora_run / "rl-1-policy" / "model", load_tokenizer(lora_run / "merged")).state_dict()
    assert all(torch.equal(in_memory[name], weight) for name, weight in ours.items())


def test_an_adapter_whose_base_is_gone_has_no_whole_weights(pit, lora_run, tmp_path):
    run = shutil.copytree(lora_run, tmp_path / "run")
    config = run / "rl-1-policy" / "model" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(lora_run), str(tmp_path / "moved")))
    assert base_name(config.parent) == str(run / "data" / "base")  # the run may have moved
    shutil.rmtree(run / "data" / "base")
    code, _, error = pit("export", run, "-o", tmp_path / "out")
    assert (code, f"found an adapter over {tmp_path}/moved/data/base, which is gone" in error) == (2, True)
    assert not (tmp_path / "out").exists()
    assert pit("export", run, "-o", tmp_path / "out", "--adapter")[0] == 0


# -- the card


def test_the_card_says_what_was_measured_and_on_what(pit, tiny_run, tmp_path):
    pit("export", tiny_run.root, "-o", tmp_path / "improver")
    assert_no_path(tmp_path / "improver", tiny_run.root, tmp_path)
    card = card_of(tmp_path / "improver")
    systems = run_report(tiny_run.root, stored_recipe(tiny_run.root)).systems
    health = json.loads((tiny_run.root / "gap" / "stage.json").read_text())["result"]["health"]
    assert {"pitlm", "arxiv:2310.00898"} <= set(card.data.tags)
    metadata = card.data.to_dict()
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "text-generation")
    assert card.data.base_model is None
    pit_line = next(line for line in systems if line.system == "PIT")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {
        "delta": round(100 * pit_line.delta.estimate, 1),
        "win_rate": round(100 * pit_line.win_rate.estimate, 1),
    }
    rows = dict(reversed(re.findall(r"^\| (.+?) \| (.+) \|$", card.text, re.MULTILINE)))  # the first of each name
    for line in systems:
        name = f"**{line.system}**" if line.system == "PIT" else line.system
        if line.system != "original":
            shown = [float(figure.replace("−", "-")) for figure in re.findall(r"[+−]?\d+\.\d(?=%)", rows[name])]
            wanted = [value for i in (line.delta, line.win_rate) for value in (i.estimate, i.low, i.high)]
            wanted.append(line.answered.copy_rate)
            assert shown == [pytest.approx(100 * value, abs=0.051) for value in wanted], name
    fresh = health["fresh_pairs"]
    shown = f"{100 * fresh['estimate']:.1f}% [{100 * fresh['low']:.1f}%, {100 * fresh['high']:.1f}%]"
    assert rows["Fresh pairs of the policy's own answers"].startswith(shown)
    assert "judged by true utility" in card.text
    assert "One run, one seed (0)" in card.text
    assert "sft 78, reward 78, rl 79, validation 18, test 47" in card.text
    recipe = yaml.safe_load(re.search(r"~~~yaml\n(.*?)~~~", card.text, re.DOTALL)[1])
    stored = json.loads((tiny_run.root / "recipe.json").read_text())
    assert recipe["curriculum"]["rl"].pop("beta") == stored["curriculum"]["rl"]["beta"]
    assert recipe["data"] == stored["data"]
    assert "<details>" in card.text


@pytest.mark.parametrize(
    ("key", "source", "base", "hub"),
    [
        ("contents of ", "/srv/people/jane/secret-pairs.jsonl", "/srv/models/Big-8B", False),
        ("contents of ", "../secret/secret-pairs.jsonl", "models/Big-8B", False),
        ("", "jane/secret-pairs.jsonl:train", "jane/Big-8B", True),
    ],
)
def test_names_of_the_hub_are_in_the_card_and_places_of_this_machine_are_not(
    pit, tiny_run, tmp_path, key, source, base, hub
):
    run = Path(shutil.copytree(tiny_run.root, tmp_path / "run"))
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"]["source"], recipe["model"] = source, {**recipe["model"], "init": None, "base": base}
    recipe["curriculum"]["rl"]["rollout_server"] = "http://gpu7.example.internal:8000"
    (run / "recipe.json").write_text(json.dumps(recipe))
    record = run / "data" / "stage.json"
    tree = json.loads(record.read_text())
    tree["settings"] = {k: v for k, v in tree["settings"].items() if k not in ("data.source", "model.base")}
    told = {"data.source": source, "model.base": base}
    tree["settings"] |= {f"{key}{name}": "0123abcd" if key else value for name, value in told.items()}
    record.write_text(json.dumps(tree))
    pit("export", run, "-o", tmp_path / "out")
    assert_no_path(tmp_path / "out", tmp_path)
    card = card_of(tmp_path / "out")
    assert "secret-pairs.jsonl" in card.text
    assert "Big-8B" in card.text
    assert "people" not in card.content
    assert "secret/" not in card.content
    assert "gpu7" not in card.content
    assert card.data.base_model == (base if hub else None)
    assert card.data.get("datasets") == (["jane/secret-pairs.jsonl"] if hub else None)
    assert "There is no ground truth here" in card.text


def test_a_stage_on_the_way_claims_no_row_of_the_table(pit, tiny_run, tmp_path):
    for stage, claim in (("rl-0-data", "no row shows it"), ("improver-sft", "**SFT-only improver** is this model")):
        assert pit("export", tiny_run.root / stage, "-o", tmp_path / stage)[0] == 0
        card = card_of(tmp_path / stage)
        assert claim in card.text
        assert "**PIT**" not in card.text
        assert f"stage `{stage}`" in card.text
        # The model's own folder is recognised as part of its run.
        pit("export", tiny_run.root / stage / "model", "-o", tmp_path / "model" / stage)
        assert card_of(tmp_path / "model" / stage).content == card.content
    assert (card_of(tmp_path / "rl-0-data").data.eval_results or []) == []


def test_a_model_outside_a_run_has_a_card_without_results(pit, bases, tmp_path):
    for kind in ("gap", "reward"):
        scorer_checkpoint(bases("words"), tmp_path / kind, kind)
        assert pit("export", tmp_path / kind, "-o", tmp_path / f"{kind}-out")[0] == 0
        card = card_of(tmp_path / f"{kind}-out")
        assert "None: this model was exported from a folder outside its run." in card.text
        assert "Recipe" not in card.text
        assert card.data.pipeline_tag == "text-classification"
        assert_no_path(tmp_path / f"{kind}-out", tmp_path)


def test_a_run_that_has_got_as_far_as_the_gap_model_gives_that(pit, tiny_run, tmp_path):
    """R_PIT alone needs no reinforcement learning."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run.root / "recipe.json", run)
    for stage in ("data", "gap"):
        shutil.copytree(tiny_run.root / stage, run / stage)
    assert pit("export", run / "gap", "-o", tmp_path / "gap")[0] == 0
    text = card_of(tmp_path / "gap").text
    assert "has no evaluation yet" in text
    assert "Health of R_PIT" in text
    assert pit("export", run, "--model", "gap", "-o", tmp_path / "other") == (
        2,
        "",
        f"Error: {run}: stage 'evaluation' is not done; run `pit run` on it first\n",
    )


# -- what is refused


def refusals(run: Path, folder: Path) -> dict[str, tuple[list[object], str]]:
    """Each refused command, and the expected message."""
    out = ["-o", folder / "new"]
    return {
        "nowhere to write": ([run], "give -o (a folder), or --push-to-hub (a name), or both"),
        "no such folder": ([folder / "none", *out], "found no such folder, expected that of a run, a stage or a model"),
        "something else": ([folder / "full", *out], "found neither recipe.json, stage.json nor pit.json"),
        "a stage without a model": ([run / "data", *out], "found a stage without a model"),
        "no such model": (
            [run, "--model", "judge", *out],
            "'judge' is not one of 'improver', 'policy', 'gap', 'reward'",
        ),
        "a model of a stage": ([run / "gap", "--model", "gap", *out], "--model: found beside"),
        "no adapter": ([run, "--adapter", *out], "--adapter: found none over the run's base"),
        "a cast adapter": ([run, "--adapter", "--dtype", "float16", *out], "--dtype: found beside --adapter"),
        "a full folder": (
            [run, "-o", folder / "full"],
            "found a folder that is not empty; give another -o, or --force",
        ),
        "around the current folder": ([run, "-o", Path.cwd().parent], "found the current folder, or one around it"),
        "a mount point": ([run, "-o", "/proc"], "found a mount point, expected a folder in it"),
        "somebody's folder": ([run, "-o", folder / "full", "--force"], "found no export, expected an earlier export"),
        "a file": ([run, "-o", folder / "full" / "thesis.txt"], "found a file, expected the folder"),
        "inside the run": ([run, "-o", run / "gap" / "model", "--force"], "found a folder inside the source"),
        "privately nowhere": ([run, "--private", *out], "--private: found without --push-to-hub"),
        "offline": ([run, "--push-to-hub", "me/x", *out], "found HF_HUB_OFFLINE set, expected to be online"),
    }


@pytest.mark.parametrize("case", refusals(Path(), Path()))
def test_what_cannot_be_is_refused_with_one_message_and_nothing_written(pit, tiny_run, tmp_path, case):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    before = {path: path.stat().st_mtime_ns for path in (tiny_run.root / "gap" / "model").iterdir()}
    arguments, message = refusals(tiny_run.root, tmp_path)[case]
    code, said, error = pit("export", *arguments)
    assert (code, said) == (2, "")
    assert message in error
    assert error.count("Error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    assert before == {path: path.stat().st_mtime_ns for path in (tiny_run.root / "gap" / "model").iterdir()}


def test_an_earlier_export_is_replaced_as_a_whole_or_not_at_all(pit, tiny_run, bases, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert pit("export", tiny_run.root, "--model", "gap", "-o", out)[0] == 0  # an empty folder is accepted
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    broken = generator_checkpoint(bases("words"), tmp_path / "broken", "improver")
    (broken / "model.safetensors").write_bytes(b"nothing")
    code, _, error = pit("export", broken, "-o", out, "--force")
    assert (code, "cannot load a model" in error) == (2, True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    (out / "model-00002-of-00002.safetensors").write_text("")  # of an earlier export of a larger model
    assert pit("export", tiny_run.root, "-o", out, "--force")[0] == 0
    assert json.loads((out / "pit.json").read_text())["kind"] == "improver"
    assert not (out / "stale.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out"]


def test_what_somebody_put_beside_an_export_is_kept(pit, tiny_run, tmp_path):
    out = tmp_path / "out"
    assert pit("export", tiny_run.root, "-o", out)[0] == 0
    (out / "notes.md").write_text("what I tried")
    code, _, error = pit("export", tiny_run.root, "-o", out, "--force")
    assert (code, "found a folder with 'notes.md' in it" in error) == (2, True)
    assert (out / "notes.md").read_text() == "what I tried"


def test_a_model_of_another_run_is_no_earlier_export(pit, tiny_run, tmp_path):
    shutil.copytree(tiny_run.root / "gap", tmp_path / "gap")
    before = {path: path.read_bytes() for path in (tmp_path / "gap" / "model").iterdir()}
    code, _, error = pit("export", tiny_run.root, "-o", tmp_path / "gap" / "model", "--force")
    assert (code, "found no export, expected an earlier export" in error) == (2, True)
    assert {path: path.read_bytes() for path in (tmp_path / "gap" / "model").iterdir()} == before


def test_results_of_other_models_than_the_runs_are_not_on_the_card(pit, tiny_run, tmp_path):
    """After `pit run --update --until rl-1-policy`, the run's evaluation is of the earlier models."""
    run = Path(shutil.copytree(tiny_run.root, tmp_path / "run"))
    record = json.loads((run / "rl-1-policy" / "stage.json").read_text())
    (run / "rl-1-policy" / "stage.json").write_text(json.dumps({**record, "fingerprint": "0" * 16}))
    assert pit("export", run, "-o", tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "has no evaluation yet" in card
    assert "Health of R_PIT" in card
    assert "points over" not in card


def test_a_clone_is_not_taken_for_an_earlier_export(pit, tiny_run, tmp_path):
    out = tmp_path / "out"
    assert pit("export", tiny_run.root / "gap", "-o", out)[0] == 0
    (out / ".git").mkdir()
    code, _, error = pit("export", tiny_run.root / "gap", "-o", out, "--force")
    assert (code, "found a folder with '.git' in it" in error) == (2, True)
    assert (out / ".git").is_dir()


def test_a_stage_that_was_stopped_is_not_exported(pit, tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run.root, tmp_path / "run"))
    record = run / "gap" / "stage.json"
    record.write_text(record.read_text().replace('"status": "done"', '"status": "started"'))
    for source in (run / "gap", run / "gap" / "model"):
        code, _, error = pit("export", source, "-o", tmp_path / "out")
        assert (code, "stage 'gap' is not done" in error) == (2, True)


# -- the hub


def push(shell: Any, hub: HubServer, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `pit export` as a process that knows only this hub."""
    told = {"HF_ENDPOINT": hub.address, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    home = str(shell.folder / "home")  # not the token of the user who runs the tests
    return shell.process("export", *arguments, HF_HOME=home, **told, **environment)


def test_pushing_brings_each_byte_to_the_hub(shell, tiny_run, tmp_path):
    with HubServer() as hub:
        done = push(shell, hub, tiny_run.root, "-o", "out", "--push-to-hub", "my-improver", "--private")
        assert done.returncode == 0, done.stderr
        assert f"Pushed: {hub.address}/me/my-improver/commit/1" in done.stdout
        repository = hub.repositories["me/my-improver"]
    assert repository.private
    assert repository.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.stored.keys()  # the weights came by LFS
    assert len(repository.commits) == 1
    text = repository.files["README.md"].decode()
    assert "# me/my-improver" in text
    assert "$ vllm serve me/my-improver" in text
    assert str(tmp_path) not in text


@pytest.fixture
def online(monkeypatch):
    """Points the hub's client of this process, which reads its settings at import, to one hub only."""
    from huggingface_hub import constants

    def connect(hub: HubServer, *, token: str = "", xet: bool = False) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", token or hub.token)

    return connect


def test_pushing_needs_no_folder_and_goes_with_xet_installed(online, pit, tiny_run, tmp_path, monkeypatch):
    """Without -o nothing stays here. With Xet installed, the client uploads through Xet's own pipeline."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with HubServer(lfs=False) as hub:
        online(hub, xet=True)
        code, said, error = pit("export", tiny_run.root, "--model", "gap", "--push-to-hub", "me/gap")
        assert (code, said) == (0, f"Pushed gap: {hub.address}/me/gap/commit/1\n"), error
        files = hub.repositories["me/gap"].files
    assert not hub.repositories["me/gap"].private
    assert hub.stored == {}
    assert list((tmp_path / "temporary").iterdir()) == []
    (tmp_path / "got").mkdir()
    for name, content in files.items():
        (tmp_path / "got" / name).write_bytes(content)
    ours, theirs = (GapModel.from_pretrained(f) for f in (tiny_run.root / "gap" / "model", tmp_path / "got"))
    assert torch.equal(ours.gaps(ITEMS), theirs.gaps(ITEMS))
    assert "$ hf download me/gap --local-dir model" in card_of(tmp_path / "got").text


@pytest.fixture
def refused(online, pit):
    """Return the message of a failed push."""

    def call(hub: HubServer, *arguments: object, token: str = "") -> str:
        online(hub, token=token)
        code, _, error = pit("export", *arguments)
        assert code == 2, error
        assert error.count("Error: ") == 1
        assert "Traceback" not in error
        assert hub.token not in error
        return error

    return call


def test_what_the_hub_refuses_is_one_message_before_any_work(refused, tiny_run, lora_run, tmp_path):
    run, out = tiny_run.root, tmp_path / "out"
    with HubServer() as hub:
        assert "refused (401): Invalid username" in refused(hub, run, "-o", out, "--push-to-hub", "me/x", token="hf_no")
        error = refused(hub, run, "-o", out, "--push-to-hub", "others/x")
        assert "refused (403): " in error
        assert "may write there?" in error
        assert "--push-to-hub a b: " in refused(hub, run, "-o", out, "--push-to-hub", "a b")
        error = refused(hub, lora_run, "--adapter", "-o", out, "--push-to-hub", "me/x")
        assert "a folder that others do not have" in error
        assert hub.repositories == {}
        hub.repositories["me/open"] = Repository(private=False)
        error = refused(hub, run, "-o", out, "--push-to-hub", "me/open", "--private")
        assert "found a public repository, expected a private one (--private)" in error
        assert hub.repositories["me/open"].files == {}
    assert f"cannot reach {hub.address}" in refused(hub, run, "-o", out, "--push-to-hub", "me/x")
    assert not out.exists()


def test_without_a_token_nothing_begins(refused, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("pitlm.run.export.get_token", lambda: None)
    with HubServer() as hub:
        error = refused(hub, tiny_run.root, "-o", tmp_path / "out", "--push-to-hub", "me/x")
    assert "found no token; run `hf auth login`, or set HF_TOKEN" in error
    assert hub.calls == []
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_leaves_the_export_and_goes_on(refused, pit, tiny_run, tmp_path):
    out = tmp_path / "out"
    asked = (tiny_run.root, "-o", out, "--push-to-hub", "me/x")
    with HubServer(refuse=("/commit/", 413)) as hub:
        error = refused(hub, *asked)
        assert "--push-to-hub me/x: refused (413): not today" in error
        assert f"The export is in {out}" in error
        assert hub.repositories["me/x"].files == {}
        hub.refuse = None
        assert pit("export", *asked, "--force")[0] == 0
        assert hub.repositories["me/x"].files.keys() == {path.name for path in out.iterdir()}
