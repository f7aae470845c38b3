"""RL: the input of the reward, and the SFT model as KL anchor in every stage."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from builders import ASK, preference, rl_section, train_section, workbench
from peft import PeftModel
from transformers import AutoModelForCausalLM

import pitlm.method.rl as rl
from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.recipe import LoraSection
from pitlm.data.template import Template, encode_prompts
from pitlm.engines.generators import generate
from pitlm.method.rl import sample_reward, train_rl
from pitlm.method.supervised import improver_rows, train_on_rows
from pitlm.method.watch import Probe
from pitlm.models.loading import Card, load_model, load_tokenizer, save

TEMPLATE = Template(ASK)
CONVERSATIONS = [
    TEMPLATE.improver_messages(Prompt.of(x), y)
    for x, y in (
        ("is it small ?", "silly question ."),
        ("price ?", "it is nine ."),
        ("what is it ?", "red"),
        ("it ?", "it"),
    )
]
LORA = LoraSection(r=4, alpha=8)


class Recorder:
    """A reward that remembers its inputs. It prefers lower token ids, so that training changes the model."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def __call__(self, rows, conversations):
        self.rows += rows
        return torch.tensor([-sum(row[-4:]) / 100 for row in rows])


def varied(base, folder, seed, scale=0.3):
    """Write another checkpoint: the base with noise on its weights."""
    tokenizer = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if not model.config.tie_word_embeddings:
            model.lm_head.weight *= 20  # its distribution is far from uniform
        for weight in model.parameters():
            weight += scale * weight.std().nan_to_num() * torch.randn(weight.shape, generator=generator)
    save(model, tokenizer, Card("improver", ASK, 6), folder)
    return folder


def logged(bench):
    return [json.loads(line) for line in (bench.folder / "metrics.jsonl").read_text().splitlines()]


def train(bench, anchor, reward=None, section=None, **kwargs):
    reward = reward or Recorder()
    train_rl(CONVERSATIONS, reward, section or rl_section(), bench, title="RL", anchor=anchor, **kwargs)
    return reward


def log_ratio(rows, tokenizer, start, anchor, max_new_tokens) -> float:
    """Mean over samples of log start(y) - log anchor(y), by hand."""
    prompts = encode_prompts(tokenizer, CONVERSATIONS)
    models = [load_model(folder, tokenizer) for folder in (start, anchor)]
    total = 0.0
    for row in rows:
        prompt = next(prompt for prompt in prompts if row[: len(prompt)] == prompt)
        ids = torch.tensor([row[: len(prompt) + max_new_tokens]])  # without the end token that the reward adds
        with torch.no_grad():
            logp, ref_logp = (
                torch.log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1], -1)
                .gather(1, ids[0, len(prompt) :, None])
                .sum()
                .item()
                for model in models
            )
        total += logp - ref_logp
    return total / len(rows)


@pytest.fixture
def unit(bases, tmp_path):
    bench = workbench(tmp_path / "rl", bases("words"))
    return bench, bench.tokenizer.eos_token_id, encode_prompts(bench.tokenizer, CONVERSATIONS)


def ask(reward, completions, **kwargs):
    return reward(prompts=CONVERSATIONS[: len(completions)], completions=None, completion_ids=completions, **kwargs)


def test_the_reward_reads_exactly_the_sampled_tokens(unit):
    bench, end, prompts = unit
    reward = Recorder()
    ask(sample_reward(reward, bench, 1.0, None), [[7, 8, end], [9, end], [end]])
    assert reward.rows == [prompts[0] + [7, 8, end], prompts[1] + [9, end], prompts[2] + [end]]


def test_a_cut_answer_is_scored_with_its_end_token_less_the_penalty(unit):
    bench, end, prompts = unit
    reward = Recorder()
    got = ask(sample_reward(reward, bench, 0.25, None), [[7, 8, 9], [7, 8, 9, end]])
    assert reward.rows == [prompts[0] + [7, 8, 9, end], prompts[1] + [7, 8, 9, end]]
    plain = -(7 + 8 + 9 + end) / 100
    assert got == pytest.approx([plain - 0.25, plain])


def test_without_a_penalty_a_cut_answer_is_left_out(unit):
    bench, end, _ = unit
    got = ask(sample_reward(Recorder(), bench, None, None), [[7, 8, 9], [7, end]])
    assert got[0] is None
    assert got[1] is not None


def test_the_probe_sees_conversations_and_texts_and_is_logged(unit):
    bench, end, _ = unit
    words = bench.tokenizer.encode("the price", add_special_tokens=False)
    seen, metrics = [], {}

    def probe(conversations, texts):
        seen.append((conversations, texts))
        return [1.0, 2.0]

    watched = sample_reward(Recorder(), bench, 1.0, Probe(probe, []))
    got = ask(watched, [[*words, end], words], log_metric=metrics.__setitem__)
    assert seen == [(CONVERSATIONS[:2], ["the price", "the price"])]
    assert metrics == {"probe": 1.5}
    assert got == ask(sample_reward(Recorder(), bench, 1.0, None), [[*words, end], words])


@pytest.mark.parametrize("family", ["words", "llama3", "qwen3"])
def test_a_first_stage_starts_at_its_anchor_and_reads_what_it_sampled(bases, tmp_path, family):
    bench = workbench(tmp_path / "rl", bases(family))
    anchor = varied(bases(family), tmp_path / "sft", seed=1)
    bench = workbench(tmp_path / "rl", anchor)
    reward = train(bench, anchor, probe=Probe(lambda conversations, texts: [0.5] * len(texts), CONVERSATIONS[:2]))
    prompts = encode_prompts(bench.tokenizer, CONVERSATIONS)
    end = bench.tokenizer.eos_token_id
    assert len(reward.rows) == 2 * 8
    for row in reward.rows:
        prompt = next(prompt for prompt in prompts if row[: len(prompt)] == prompt)
        completion = row[len(prompt) :]
        assert completion.count(end) == 1
        assert completion[-1] == end
        assert len(completion) <= 6 + 1
    steps = logged(bench)
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert steps[1]["kl"] != steps[0]["kl"]
    assert steps[0]["probe"] == 0.5
    measured = [json.loads(line) for line in (bench.folder / "probe.jsonl").read_text().splitlines()]
    assert measured == [{"step": step, "quality": [0.5, 0.5]} for step in (0, 2)]
    assert [row["step"] for row in steps[:2]] == [1, 2]


@pytest.mark.parametrize("peft", [None, LORA])
def test_each_probe_measures_the_weights_after_its_step_and_the_last_those_that_are_saved(bases, tmp_path, peft):
    """The saved model, asked again, gives the last measurement; no two measurements are of the same weights."""
    anchor = varied(bases("llama3"), tmp_path / "sft", seed=1)
    bench = workbench(tmp_path / "rl", anchor, peft=peft)
    letters = lambda conversations, texts: [float(sum(map(ord, text))) for text in texts]  # noqa: E731
    section = rl_section(learning_rate=0.05, max_steps=4, probe_every=2, schedule="constant_with_warmup")
    train(bench, anchor, section=section, probe=Probe(letters, CONVERSATIONS))
    measured = [json.loads(line) for line in (bench.folder / "probe.jsonl").read_text().splitlines()]
    assert [row["step"] for row in measured] == [0, 2, 4]
    answered = []
    for model in (anchor, bench.model_folder):
        completions = generate(
            load_model(model, bench.tokenizer),
            bench.tokenizer,
            encode_prompts(bench.tokenizer, CONVERSATIONS),
            max_new_tokens=bench.card.max_new_tokens,
            temperature=section.temperature,
            seed=bench.seed,
        )
        texts = bench.tokenizer.batch_decode(completions, skip_special_tokens=True)
        answered.append(letters(CONVERSATIONS, [text.strip() for text in texts]))
    assert [measured[0]["quality"], measured[-1]["quality"]] == answered
    assert len({tuple(row["quality"]) for row in measured}) == 3


def test_a_later_stage_is_still_anchored_to_the_sft_model(bases, tmp_path):
    """At the first step, KL is between the start and the SFT model; the test computes it by hand from the samples."""
    anchor = varied(bases("llama3"), tmp_path / "sft", seed=1)
    start = varied(bases("llama3"), tmp_path / "stage-0", seed=2, scale=1.0)
    bench = workbench(tmp_path / "rl", start)
    reward = train(bench, anchor)
    first = logged(bench)[0]
    assert first["kl"] > 0.05
    expected = log_ratio(reward.rows[:8], bench.tokenizer, start, anchor, 6)
    assert first["kl_sequence"] == pytest.approx(expected, rel=1e-3)


def test_with_lora_a_later_stage_goes_on_from_the_adapter_and_is_anchored_to_the_weights_under_it(bases, tmp_path):
    anchor = varied(bases("llama3"), tmp_path / "sft", seed=1)
    zero = workbench(tmp_path / "rl-0", anchor, peft=LORA)
    train(zero, anchor, section=rl_section(learning_rate=0.1))
    assert logged(zero)[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    one = workbench(tmp_path / "rl-1", anchor, peft=LORA)
    reward = train(one, anchor, adapter=zero.model_folder)
    expected = log_ratio(reward.rows[:8], one.tokenizer, zero.model_folder, anchor, 6)
    assert abs(expected) > 0.01
    assert logged(one)[0]["kl_sequence"] == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_with_lora_the_saved_model_is_the_anchor_with_the_adapter_on_it(bases, tmp_path):
    anchor = varied(bases("qwen3"), tmp_path / "sft", seed=1)
    bench = workbench(tmp_path / "rl", anchor, peft=LORA)
    train(bench, anchor, section=rl_section(learning_rate=0.1))
    base = AutoModelForCausalLM.from_pretrained(anchor)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    merged = load_model(bench.model_folder, bench.tokenizer).state_dict()
    under = PeftModel.from_pretrained(base, bench.model_folder).merge_and_unload().state_dict()
    changed = []
    for name, weight in merged.items():
        torch.testing.assert_close(weight, under[name], atol=1e-6, rtol=0)
        if not torch.equal(weight, before[name]):
            changed.append(name)
    assert changed
    assert all("_proj" in name for name in changed)


def test_with_lora_a_later_stage_begins_with_the_adapter_of_the_stage_before_to_the_last_bit(
    bases, tmp_path, monkeypatch
):
    """Also where the adapter on the disk has been joined with that of the SFT."""
    seen = []

    def keep(self, args, state, control, model=None, **kwargs):
        seen.append(copy.deepcopy({name: w for name, w in model.state_dict().items() if "lora_" in name}))

    sft = workbench(tmp_path / "sft", bases("llama3"), peft=LORA)
    pairs = [preference(f"is it {word} ?", word, "nine") for word in ("small", "happy to help", "red", "lamp")]
    rows = improver_rows(pairs, sft.tokenizer, Template(ASK))
    train_on_rows("improver", rows, rows, train_section(learning_rate=0.1), sft)
    for number, before in ((0, None), (1, tmp_path / "rl-0" / "model")):
        monkeypatch.setattr(rl.AnchorCheck, "on_train_begin", keep)
        monkeypatch.setattr(rl.AnchorCheck, "on_train_end", keep)
        bench = workbench(tmp_path / f"rl-{number}", sft.model_folder, peft=LORA)
        train(bench, sft.model_folder, section=rl_section(learning_rate=0.1), adapter=before)
    (_, ended, began, _) = seen
    assert began.keys() == ended.keys()
    for name, weight in ended.items():
        assert torch.equal(began[name], weight), name
    assert any(weight.abs().max() > 0 for name, weight in ended.items() if "lora_B" in name)


def test_an_anchor_that_is_the_stages_own_start_stops_the_run(bases, tmp_path, monkeypatch):
    """TRL itself takes the start as the anchor when training starts from a later checkpoint."""
    anchor = varied(bases("words"), tmp_path / "sft", seed=1)
    start = varied(bases("words"), tmp_path / "stage-0", seed=2)

    class Forgetful(rl.SharedPromptRLOOTrainer):
        def __init__(self, model, **kwargs):
            model.config._name_or_path = str(start)
            super().__init__(model=model, **kwargs)

    monkeypatch.setattr(rl, "SharedPromptRLOOTrainer", Forgetful)
    with pytest.raises(RuntimeError, match="the KL anchor differs from"):
        train(workbench(tmp_path / "rl", start), anchor)


def test_with_lora_other_weights_under_the_adapter_stop_the_run(bases, tmp_path):
    anchor = varied(bases("words"), tmp_path / "sft", seed=1)
    start = varied(bases("words"), tmp_path / "stage-0", seed=2)
    with pytest.raises(RuntimeError, match="the KL anchor differs from"):
        train(workbench(tmp_path / "rl", start, peft=LORA), anchor)


def test_an_adapter_copied_as_reference_stops_the_run(bases, tmp_path, monkeypatch):
    anchor = varied(bases("words"), tmp_path / "sft", seed=1)

    class Copying(rl.SharedPromptRLOOTrainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.model.add_adapter("ref", self.model.peft_config["default"])

    monkeypatch.setattr(rl, "SharedPromptRLOOTrainer", Copying)
    with pytest.raises(RuntimeError, match="a copy of the adapter"):
        train(workbench(tmp_path / "rl", anchor, peft=LORA), anchor)


def test_without_kl_no_anchor_is_needed(bases, tmp_path):
    anchor = varied(bases("words"), tmp_path / "sft", seed=1)
    bench = workbench(tmp_path / "rl", anchor)
    train(bench, anchor, section=rl_section(beta=0.0, max_steps=1))
    assert bench.model_folder.is_dir()


@pytest.mark.parametrize(
    ("rollouts", "use", "mode", "server"),
    [
        ("transformers", False, "colocate", None),
        ("vllm-colocate", True, "colocate", None),
        ("vllm-server", True, "server", "http://gpu:8001"),
    ],
)
def test_what_samples_is_told_to_trl(unit, rollouts, use, mode, server):
    section = rl_section(rollouts=rollouts, rollout_server="http://gpu:8001")
    told = rl.rl_arguments(section, unit[0])
    assert (told.use_vllm, told.vllm_mode, told.vllm_server_base_url) == (use, mode, server)
    assert (told.temperature, told.top_p, told.top_k) == (section.temperature, 1.0, 0)


def test_without_vllm_its_rollouts_are_refused_before_anything_starts(monkeypatch):
    rl.check_rollouts(rl_section(), None)
    monkeypatch.setattr(rl, "is_vllm_available", lambda: False)
    with pytest.raises(InputError, match=r"^rollouts: found vllm-server, expected vLLM installed"):
        rl.check_rollouts(rl_section(rollouts="vllm-server"), None)
    with pytest.raises(
        InputError, match=r"rollouts: found vllm-colocate with peft\.quantize nf4, expected transformers"
    ):
        rl.check_rollouts(rl_section(rollouts="vllm-colocate"), "nf4")


def test_the_reward_goes_up(bases, tmp_path):
    """Four words earn a point each in any place; after a few steps the model writes nothing else."""
    anchor = bases("words")
    bench = workbench(tmp_path / "rl", anchor)
    wanted = set(bench.tokenizer.encode("the price is nine", add_special_tokens=False))

    def reward(rows, conversations):
        return torch.tensor([float(sum(token in wanted for token in row[-5:])) for row in rows])

    section = rl_section(max_steps=25, batch_size=32, group=8, learning_rate=2e-2, beta=0.01, truncated_penalty=0.0)
    train(bench, anchor, reward, section)
    rewards = [row["reward"] for row in logged(bench) if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 1.0


def test_when_every_answer_is_cut_and_left_out_nothing_moves_and_nothing_breaks(bases, tmp_path):
    """The model never samples an end token, so it learns nothing and logs no reward."""
    tokenizer = load_tokenizer(bases("words"))
    model = AutoModelForCausalLM.from_pretrained(bases("words"))
    with torch.no_grad():  # tied head: an end token opposite to every hidden state is never sampled
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 0
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    model.lm_head.weight.data *= 1000
    save(model, tokenizer, Card("improver", ASK, 3), tmp_path / "sft")
    bench = workbench(tmp_path / "rl", tmp_path / "sft", max_new_tokens=3)
    reward = train(bench, tmp_path / "sft", section=rl_section(truncated_penalty=None, max_steps=1, learning_rate=0.1))
    assert all(row[-2] != tokenizer.eos_token_id for row in reward.rows)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "sft").state_dict()
    after = AutoModelForCausalLM.from_pretrained(bench.model_folder).state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert logged(bench)[0]["reward"] is None
