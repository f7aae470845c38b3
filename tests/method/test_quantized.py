"""QLoRA: training adapters over a base in 4 bits, and saving them. Needs bitsandbytes, which also runs on CPUs."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from builders import preference, rl_section, train_section, workbench
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import pitlm.models.quantization as quantization
from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.core.recipe import LoraSection, Recipe
from pitlm.data.template import Template
from pitlm.engines.generators import Improver
from pitlm.method.rl import AnchorCheck, train_rl
from pitlm.method.supervised import gap_rows, improver_rows, train_on_rows
from pitlm.models.adapters import Bases
from pitlm.models.loading import load_model, load_tokenizer
from pitlm.models.scorers import GapModel
from pitlm.models.trees import reads_trees

PAIRS = [
    preference("is it small ?", "the price is nine .", "silly question ."),
    preference("what is the price ?", "nine", "read it yourself ."),
    preference("what is it ?", "happy to help . the price is nine .", "it"),
    preference("is it it ?", "it is small .", "it"),
]
ITEMS = [Improvement(pair.prompt, pair.rejected, pair.chosen) for pair in PAIRS]
QLORA = {"dtype": "bfloat16", "peft": LoraSection(r=4, alpha=8, quantize="nf4")}


def layers(model) -> list[torch.nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith("_proj")]


@pytest.mark.parametrize("family", ["llama3", "qwen3", "gpt"])
def test_matrices_of_layers_are_held_in_four_bits_and_nothing_else_is(bases, family):
    tokenizer = load_tokenizer(bases(family))
    for writes, head in ((True, "lm_head"), (False, "score")):
        load = partial(load_model, writes=writes)
        held, whole = load(bases(family), tokenizer, "bfloat16", "nf4"), load(bases(family), tokenizer, "bfloat16")
        four = [module for module in held.modules() if isinstance(module, Linear4bit)]
        assert four == layers(held) if family != "gpt" else four
        assert held.get_submodule(head).weight.dtype == torch.bfloat16
        for module in four:
            name = next(name for name, found in held.named_modules() if found is module)
            assert module.weight.nbytes == whole.get_submodule(name).weight.nbytes / 4
        if writes:
            ids = torch.tensor([tokenizer.encode("the price is nine .")])
            got, want = (torch.log_softmax(model(input_ids=ids).logits.float(), -1) for model in (held, whole))
            assert 0 < (got - want).abs().mean() < 0.1


def test_gradients_are_the_same_after_the_model_was_read_without(bases):
    """RL's first probe and every evaluation read the model in training without gradients."""
    tokenizer = load_tokenizer(bases("llama3"))
    model = load_model(bases("llama3"), tokenizer, "bfloat16", "nf4")
    ids = torch.tensor([tokenizer.encode("the price is nine .")])

    def gradient() -> torch.Tensor:
        model.train().zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return model.get_input_embeddings().weight.grad.clone()

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert torch.equal(gradient(), before)


@pytest.fixture(scope="module")
def chain(bases, tmp_path_factory):
    """An improver's SFT and a gap model from it, trained over 4 bits, and their base."""
    root, base = tmp_path_factory.mktemp("chain"), bases("llama3")
    sft = workbench(root / "sft", base, **QLORA)
    rows = improver_rows(PAIRS, sft.tokenizer, Template(sft.card.ask))
    train_on_rows("improver", rows, rows, train_section(max_steps=3, epochs=3), sft)
    gap = workbench(root / "gap", sft.model_folder, "gap", **QLORA)
    triples = gap_rows(PAIRS, gap.tokenizer, Template(gap.card.ask))
    train_on_rows("gap", triples, triples, train_section(max_steps=3, epochs=3), gap)
    return {"base": base, "sft": sft, "gap": gap}


def test_what_is_loaded_is_the_base_in_full_with_the_adapter_on_it(chain):
    start = AutoModelForCausalLM.from_pretrained(chain["base"], dtype="bfloat16")
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    wanted = PeftModel.from_pretrained(start, chain["sft"].model_folder).merge_and_unload().state_dict()
    saved = load_model(chain["sft"].model_folder, chain["sft"].tokenizer, "bfloat16").state_dict()
    assert all(weight.dtype == torch.bfloat16 for weight in saved.values())
    adapter = load_file(chain["sft"].model_folder / "adapter_model.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}  # 16 bits would lose small steps
    assert saved.keys() == wanted.keys()
    for name, weight in saved.items():
        assert torch.equal(weight, wanted[name]), name
        assert ("_proj" in name) == (not torch.equal(weight, before[name])), name
    config = json.loads((chain["sft"].model_folder / "config.json").read_text())
    assert "quantization_config" not in config


@pytest.mark.parametrize("stage", ["sft", "gap"])
def test_what_a_stage_starts_from_is_merged_before_it_is_rounded_to_four_bits(chain, tmp_path, stage):
    folder, tokenizer, writes = chain[stage].model_folder, chain[stage].tokenizer, stage == "sft"
    merged = load_model(folder, tokenizer, "bfloat16", writes=writes)
    merged.save_pretrained(tmp_path)
    wanted = load_model(tmp_path, tokenizer, "bfloat16", "nf4", writes=writes)
    found = load_model(folder, tokenizer, "bfloat16", "nf4", writes=writes)
    assert [type(module) for module in found.modules()] == [type(module) for module in wanted.modules()]
    assert found.is_quantized
    assert reads_trees(found) == reads_trees(wanted) == (not writes)
    weights = found.state_dict()
    assert weights.keys() == wanted.state_dict().keys()
    for name, weight in wanted.state_dict().items():
        assert torch.equal(weights[name], weight), name


def test_models_of_a_run_share_one_base_in_four_bits(chain):
    shared = Bases("bfloat16", "nf4")
    folders = {"improver": chain["sft"].model_folder, "gap": chain["gap"].model_folder}
    improver = Improver.from_pretrained(folders["improver"], bases=shared)
    gap = GapModel.from_pretrained(folders["gap"], bases=shared)
    assert gap.model.base_model is improver.model.base_model
    assert all(isinstance(module.base_layer, Linear4bit) for module in layers(improver.model))
    alone = GapModel.from_pretrained(folders["gap"], bases=Bases("bfloat16"))
    raw = alone.raw(ITEMS)
    assert (gap.raw(ITEMS) - raw).abs().max() < 0.3 * raw.abs().max()
    [answer] = improver.propose([Prompt.of("is it small ?")], ["it"], temperature=0)
    assert answer.generated_tokens > 0


def test_rl_is_anchored_to_the_weights_under_the_adapter_in_four_bits(chain, tmp_path, monkeypatch):
    checked = []
    begin = AnchorCheck.on_train_begin
    monkeypatch.setattr(AnchorCheck, "on_train_begin", lambda self, *a, **k: checked.append(begin(self, *a, **k)))
    anchor = chain["sft"].model_folder
    conversations = [Template(chain["sft"].card.ask).improver_messages(item.prompt, item.reference) for item in ITEMS]
    zero, one = (workbench(tmp_path / name, anchor, **QLORA) for name in ("rl-0", "rl-1"))

    def reward(rows, conversations):
        return torch.tensor([-sum(row[-4:]) / 100 for row in rows])

    train_rl(conversations, reward, rl_section(), zero, title="RL", anchor=anchor)
    train_rl(conversations, reward, rl_section(), one, title="RL", anchor=anchor, adapter=zero.model_folder)
    assert len(checked) == 2
    kl = [json.loads(line).get("kl") for line in (zero.folder / "metrics.jsonl").read_text().splitlines()]
    assert kl[0] == pytest.approx(0.0, abs=1e-4)
    assert torch.isfinite(torch.tensor([value for value in kl if value is not None])).all()
    saved = [load_model(b.model_folder, b.tokenizer, "bfloat16").state_dict() for b in (chain["sft"], zero, one)]
    name = next(name for name in saved[0] if "_proj" in name)
    assert len({tuple(state[name].flatten().tolist()) for state in saved}) == 3


def test_four_bits_are_of_sixteen_and_need_bitsandbytes(bases, monkeypatch):
    train = {"learning_rate": 1e-3}
    rl = {**train, "max_steps": 1}
    tree = {
        "name": "four",
        "data": {"source": "pairs.jsonl"},
        "model": {"base": "x"},
        "peft": {"quantize": "nf4"},
        **dict.fromkeys(("policy_sft", "reward", "improver_sft", "gap"), train),
        "curriculum": {"rl": rl},
    }
    with pytest.raises(InputError, match=r"peft\.quantize nf4 needs model\.dtype bfloat16, not float32"):
        Recipe.of(tree, "four")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"peft\.quantize: found nf4, expected .* pip install 'pitlm\[qlora\]'"):
        load_model(bases("llama3"), load_tokenizer(bases("llama3")), "bfloat16", "nf4")
