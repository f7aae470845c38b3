"""Checkpoints that are adapters: the models that PEFT merges of them, on the disk and in the memory of one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import ASK, random_model
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.engines.engine import WriteRequest
from pitlm.engines.generators import Improver, Policy
from pitlm.engines.local_engine import LocalEngine
from pitlm.models.adapters import Bases
from pitlm.models.loading import Card, load_model, load_shape, load_tokenizer, save
from pitlm.models.lora import base_name, last_trained
from pitlm.models.scorers import GapModel, GuardedGap, RewardModel

X = [Prompt.of("what is the price of the red lamp ?"), Prompt.of("is it small ?")]
Y_REF = ["silly question .", "read it yourself ."]
ITEMS = [
    Improvement(x, y, z)
    for x, y in zip(X, Y_REF, strict=True)
    for z in ("the price is nine .", "it is small .", "happy to help .")
]
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}


def trained(start: Path, folder: Path, kind: str, seed: int, **lora) -> Path:
    """A stage with LoRA as :func:`pitlm.method.common.fit` leaves it, with a random adapter and head instead of
    trained ones. Beside it, in ``merged``, lie the weights that PEFT makes of it."""
    tokenizer, scores = load_tokenizer(start), kind in ("reward", "gap")
    before = start.parent / "merged" if start.name == "model" else start
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = load_model(before, tokenizer, writes=not scores)
        task = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if scores else {"task_type": "CAUSAL_LM"}
        wrapped = get_peft_model(model, LoraConfig(**{**LORA, **lora}, **task))
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name or "lora_embedding" in name or "modules_to_save" in name:
                torch.nn.init.normal_(weight, std=0.3)
    card = Card(kind, ASK, 8)
    save(wrapped, tokenizer, card, folder / "model", start=start)
    save(wrapped.merge_and_unload(), tokenizer, card, folder / "merged")
    return folder / "model"


@pytest.fixture(scope="module", params=["llama3", "qwen3", "gpt"])
def run(request, bases, tmp_path_factory):
    """Stages as in a run: qwen3 has a tied head, gpt has one token fewer than its stages, llama3 has neither."""
    root = tmp_path_factory.mktemp(request.param)
    made = {"base": bases(request.param)}
    stages = (
        ("policy", "policy", "base", {}),
        ("reward", "reward", "policy", {"r": 2, "lora_alpha": 2}),
        ("sft", "improver", "base", {"target_modules": ["q_proj", "up_proj"]}),
        ("gap", "gap", "sft", {}),
        ("rl", "improver", "sft", {}),
    )
    for seed, (name, kind, start, lora) in enumerate(stages):
        made[name] = trained(made[start], root / name, kind, seed, **lora)
    return made


def storages(*models: torch.nn.Module) -> dict[int, int]:
    """Return the bytes of each storage that holds parameters of these models."""
    held = [weight.untyped_storage() for model in models for weight in model.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def test_each_gives_what_its_merged_weights_give_whoever_was_asked_before(run):
    bases = Bases()
    kinds = {"policy": Policy, "rl": Improver, "gap": GapModel, "reward": RewardModel}
    shared = {name: kind.from_pretrained(run[name], bases=bases) for name, kind in kinds.items()}
    alone = {name: kind.from_pretrained(run[name].parent / "merged") for name, kind in kinds.items()}
    ids = torch.tensor([alone["policy"].encode(X[0])])
    for _ in range(2):
        for name in ("policy", "rl"):
            got, want = (m[name].model(input_ids=ids).logits for m in (shared, alone))
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shared["gap"].gaps(ITEMS), alone["gap"].gaps(ITEMS), rtol=1e-4, atol=1e-4)
        assert shared["policy"].answer(X, temperature=0) == alone["policy"].answer(X, temperature=0)
        got, want = (m["reward"].scores(X, Y_REF) for m in (shared, alone))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        got, want = (m["rl"].propose(X, Y_REF, temperature=0.4, seed=3) for m in (shared, alone))
        assert got == want
        both = GuardedGap(shared["gap"], shared["reward"]), GuardedGap(alone["gap"], alone["reward"])
        got, want = (guarded.gaps_apart([ITEMS[:3], ITEMS[3:]]) for guarded in both)
        assert got == [pytest.approx(group, abs=1e-4) for group in want]
    # The models differ: without this check, adapters that are never switched would pass.
    assert abs(alone["gap"].gaps(ITEMS)).max() > 1e-2
    base = load_model(run["base"], alone["policy"].tokenizer)
    assert (base(input_ids=ids).logits - shared["policy"].model(input_ids=ids).logits).abs().max() > 1e-2


def test_an_engine_and_a_scorer_take_turns_over_one_base(run):
    """Engine and scorer use the same layers, one with places and one with trees."""
    answers = []
    for bases in (Bases(), None):
        improver, gap = (
            Improver.from_pretrained(run["rl"], bases=bases),
            GapModel.from_pretrained(run["gap"], bases=bases),
        )
        engine = LocalEngine(improver, tokens_per_batch=1)  # one row after another: R_PIT scores between two prompts
        for key, (x, y) in enumerate(zip(X, Y_REF, strict=True)):
            engine.submit(WriteRequest(key, x, y, 0.4, seed=key))
        done, gaps = [], []
        while engine.pending:
            done += engine.step()
            gaps += gap.gaps_apart([ITEMS[:2]])
        answers.append((sorted((f.key, f.answer) for f in done), gaps))
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] == [pytest.approx(found, abs=1e-4) for found in answers[1][1]]


def test_the_base_itself_writes_beside_its_adapters(run):
    """It answers as if it were alone, and holds no memory of its own."""
    bases = Bases()
    policy = Policy.from_pretrained(run["policy"], bases=bases)
    start = Policy.of_chat_model(run["base"], max_new_tokens=8, bases=bases)
    alone = Policy.of_chat_model(run["base"], max_new_tokens=8), Policy.from_pretrained(run["policy"])
    for _ in range(2):
        for shared, single in zip((start, policy), alone, strict=True):
            assert shared.answer(X, temperature=0.0) == single.answer(X, temperature=0.0)
            for found, expected in zip(shared.likelihoods(X, Y_REF), single.likelihoods(X, Y_REF), strict=True):
                assert found == pytest.approx(expected, rel=1e-4)
    assert start.likelihoods(X, Y_REF) != policy.likelihoods(X, Y_REF)
    assert storages(start.model).items() <= storages(policy.model).items()
    first = Policy.of_chat_model(run["base"], max_new_tokens=8, bases=Bases())  # no adapter is open yet
    assert first.answer(X, temperature=0.0) == alone[0].answer(X, temperature=0.0)


def test_memory_holds_one_base_and_small_adapters(run):
    bases = Bases()
    models = [
        kind.from_pretrained(run[name], bases=bases).model
        for name, kind in (
            ("policy", Policy),
            ("sft", Improver),
            ("rl", Improver),
            ("gap", GapModel),
            ("reward", RewardModel),
        )
    ]
    base = storages(load_model(run["base"], load_tokenizer(run["base"])))
    files = [load_file(run[name] / "adapter_model.safetensors") for name in ("policy", "sft", "rl", "gap", "reward")]
    adapters = sum(weight.nbytes for file in files for weight in file.values())
    assert sum(storages(*models).values()) == sum(base.values()) + adapters


def test_the_adapter_of_a_chain_is_one_that_peft_itself_can_load(run):
    """The adapter has rank and base of the whole chain, and PeftModel over the base equals the merged model."""
    assert [base_name(run[name]) for name in ("policy", "gap", "rl")] == [str(run["base"].resolve())] * 3
    config = json.loads((run["rl"] / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (6, 12, "CAUSAL_LM")
    tokenizer = load_tokenizer(run["rl"])
    ids = torch.tensor([tokenizer.encode("the price is nine .")])
    for name, auto in (("rl", AutoModelForCausalLM), ("gap", AutoModelForSequenceClassification)):
        base = load_model(run["base"], tokenizer, writes=name == "rl")
        over = PeftModel.from_pretrained(base, run[name])
        merged = auto.from_pretrained(run[name].parent / "merged")
        torch.testing.assert_close(over(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_a_folder_has_the_adapter_alone_and_is_loaded_as_whole_weights(run):
    for name, kind in (("policy", Policy), ("sft", Improver), ("rl", Improver), ("gap", GapModel), ("reward", None)):
        assert [path.name for path in run[name].glob("*.safetensors")] == ["adapter_model.safetensors"]
        tokenizer = load_tokenizer(run[name])
        loaded = load_model(run[name], tokenizer, writes=kind in (Policy, Improver))
        wanted = load_model(run[name].parent / "merged", tokenizer, writes=kind in (Policy, Improver))
        assert type(loaded) is type(wanted)
        weights = loaded.state_dict()
        assert weights.keys() == wanted.state_dict().keys()
        for key, weight in wanted.state_dict().items():
            # The rounding of two sums of two products each, of weights below 2.
            torch.testing.assert_close(weights[key], weight, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")
        assert all(weight.requires_grad for weight in loaded.parameters())
        assert load_shape(run[name]).config.vocab_size == loaded.config.vocab_size == len(tokenizer)


def test_the_last_adapter_of_a_chain_is_found_in_it_to_the_last_bit(run, bases, tmp_path):
    """RL goes on from it; over the start of its stage it gives the whole model."""
    config = LoraConfig(**LORA, task_type="CAUSAL_LM")
    wrapped = get_peft_model(load_model(run["sft"], load_tokenizer(run["sft"])), config)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    own = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    save(wrapped, load_tokenizer(run["sft"]), Card("improver", ASK, 8), tmp_path / "rl", start=run["sft"])
    found = last_trained(tmp_path / "rl", 3)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], weight) for name, weight in own.items())


def test_a_base_that_is_gone_is_named(run, tmp_path):
    shutil.copytree(run["policy"], tmp_path / "policy")
    config = tmp_path / "policy" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(run["base"].resolve()), str(tmp_path / "gone")))
    for bases in (None, Bases()):
        with pytest.raises(
            InputError, match=rf"policy: found an adapter over {tmp_path}/gone, which is gone; expected"
        ):
            Policy.from_pretrained(tmp_path / "policy", bases=bases)


def test_adapters_of_embeddings_are_joined_too(bases, tmp_path):
    """Here the head has weights of its own."""
    sft = trained(bases("llama3"), tmp_path / "sft", "improver", 0, target_modules=["embed_tokens", "q_proj"])
    rl = trained(sft, tmp_path / "rl", "improver", 1, target_modules=["embed_tokens", "v_proj"])
    ids = torch.tensor([load_tokenizer(rl).encode("the price is nine .")])
    want = AutoModelForCausalLM.from_pretrained(tmp_path / "rl" / "merged")(input_ids=ids).logits
    for opened in (Improver.from_pretrained(rl), Improver.from_pretrained(rl, bases=Bases())):
        torch.testing.assert_close(opened.model(input_ids=ids).logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gpt_neox"])
def test_other_architectures_have_their_backbone_in_common_too(architecture, bases, tmp_path):
    """GPT-2 stores its matrices transposed, Gemma 2 is scored as rows, GPT-NeoX has other names."""
    tokenizer = load_tokenizer(bases("llama3"))
    model = random_model(
        AutoModelForCausalLM,
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
    )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "sft", "improver", 1)
    trained(tmp_path / "sft" / "model", tmp_path / "gap", "gap", 2)
    opened = Bases()
    improver = Improver.from_pretrained(tmp_path / "sft" / "model", bases=opened)
    gap = GapModel.from_pretrained(tmp_path / "gap" / "model", bases=opened)
    assert gap.model.base_model is improver.model.base_model
    want = GapModel.from_pretrained(tmp_path / "gap" / "merged").gaps(ITEMS)
    torch.testing.assert_close(gap.gaps(ITEMS), want, rtol=1e-3, atol=1e-3)
    proposals = Improver.from_pretrained(tmp_path / "sft" / "merged").propose(X, Y_REF, temperature=0)
    assert improver.propose(X, Y_REF, temperature=0) == proposals
