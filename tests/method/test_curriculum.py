"""The references of a stage, and its start, reward and anchor models."""

from __future__ import annotations

import json

import pytest
from builders import ASK, generator_checkpoint, preference, scorer_checkpoint

from pitlm.core.nouns import Prompt
from pitlm.core.recipe import Recipe
from pitlm.data.template import encode_completion, encode_prompts
from pitlm.engines.generators import Improver, Policy
from pitlm.method import curriculum
from pitlm.method.curriculum import sample_references, train_policy, train_stage
from pitlm.method.setting import Setting

WORDS = ("price", "lamp", "red", "small", "nine", "it")
PAIRS = [preference(f"is {word} it ?", f"the {word} is nine .", f"silly {word} .") for word in WORDS]


class Desk(Setting):
    """A run in a folder with training replaced; the judge counts words."""

    folds = {"rl": PAIRS, "validation": PAIRS[:3]}

    def train(self, folder, work):
        return work()

    def quality(self, bases):
        return lambda prompts, responses: [float(len(y.split())) for y in responses]


@pytest.fixture
def desk(bases, tmp_path):
    base = bases("words")
    for stage, kind in (("policy-sft", "policy"), ("improver-sft", "improver"), ("rl-1-policy", "improver")):
        generator_checkpoint(base, tmp_path / stage / "model", kind)
    for stage in ("gap", "reward"):
        scorer_checkpoint(base, tmp_path / stage / "model", stage)

    def make(**changes):
        train = {"learning_rate": 1e-2, "batch_size": 4}
        rl = {**train, "max_steps": 2, "group": 2, "probe_items": 2}
        tree = {
            "name": "tiny",
            "model": {"base": str(base)},
            "data": {"max_new_tokens": 6},
            "template": {"ask": ASK},
            **dict.fromkeys(("policy_sft", "reward", "improver_sft", "gap"), train),
            "curriculum": {"stages": ["data", "policy", "improver"], "rl": rl, **changes},
            "report_to": [],
        }
        return Desk(Recipe.of(tree, "tiny"), tmp_path)

    return make


def answers(desk, prompts, seed):
    writer = desk.open(Policy, "policy-sft")
    return [answer.text for answer in writer.answer(prompts, temperature=1.0, seed=seed)]


def test_the_first_stage_takes_both_responses_of_the_data(desk):
    run = desk(rl={"learning_rate": 1e-2, "batch_size": 4, "group": 2, "max_steps": 6})
    references = sample_references(run, run.recipe.curriculum.stage_list[0])
    assert sorted(y for _, y in references) == sorted(y for pair in PAIRS for y in (pair.chosen, pair.rejected))
    assert all(x in {pair.prompt for pair in PAIRS} for x, _ in references)


def test_a_stage_samples_as_many_references_as_its_steps_take(desk):
    run = desk(steps=[1, 2, 3])
    assert [len(sample_references(run, stage)) for stage in run.recipe.curriculum.stage_list] == [2, 4, 6]


def test_the_second_stage_takes_answers_of_the_policy(desk):
    run = desk()
    stage = run.recipe.curriculum.stage_list[1]
    references = sample_references(run, stage)
    prompts = [x for x, _ in references]
    assert len(set(prompts)) == len(prompts) == 4
    assert [y for _, y in references] == answers(run, prompts, run.seed("references-1"))


def test_a_further_stage_takes_answers_of_the_policy_improved_by_the_stage_before(desk):
    run = desk()
    stage = run.recipe.curriculum.stage_list[2]
    references = sample_references(run, stage)
    prompts, seed = [x for x, _ in references], run.seed("references-2")
    improver = run.open(Improver, "rl-1-policy")
    improved = improver.propose(prompts, answers(run, prompts, seed), temperature=1.0, seed=seed)
    assert [y for _, y in references] == [answer.text for answer in improved]


@pytest.fixture
def told(monkeypatch):
    """Records the arguments of each round of RL instead of training."""
    calls = []
    monkeypatch.setattr(curriculum, "train_rl", lambda *given, **named: calls.append((given, named)) or {})
    return calls


def test_a_stage_goes_on_from_the_stage_before_and_is_anchored_to_the_sft_improver(desk, told):
    run = desk()
    zero, _, two = run.recipe.curriculum.stage_list
    for stage, start in ((zero, "improver-sft"), (two, "rl-1-policy")):
        folder = run.root / stage.name
        folder.mkdir()
        assert train_stage(run, stage, folder) == {"references": 4, "source": stage.source}
        (conversations, _, section, bench), named = told.pop()
        assert bench.start == run.model(start)
        assert named["anchor"] == run.model("improver-sft")
        assert section == stage.rl
        rows = [json.loads(line) for line in (folder / "references.jsonl").read_text().splitlines()]
        shown = [run.template.improver_messages(Prompt.of(row["prompt"]), row["reference"]) for row in rows]
        assert conversations == shown
        # Probes have held-out prompts with the policy's answers; the judge reads x, not y_ref.
        probe = named["probe"]
        assert [run.template.parts(each)[0] for each in probe.held_out] == [pair.prompt for pair in PAIRS[:2]]
        assert probe.quality(list(probe.held_out), ["one", "one two"]) == [1.0, 2.0]


def test_references_that_an_interrupted_attempt_sampled_are_kept(desk, told):
    run = desk()
    stage = run.recipe.curriculum.stage_list[0]
    folder = run.root / stage.name
    folder.mkdir()
    row = {"prompt": PAIRS[0].prompt.as_messages(), "reference": "kept"}
    (folder / "references.jsonl").write_text(json.dumps(row) + "\n")
    assert train_stage(run, stage, folder)["references"] == 1
    [((conversations, *_), _)] = told
    assert conversations == [run.template.improver_messages(PAIRS[0].prompt, "kept")]


@pytest.mark.parametrize("reward", ["gap", "reward_difference"])
def test_the_reward_is_the_gap_model_or_the_difference_of_rewards(desk, told, reward):
    run = desk(reward=reward)
    stage = run.recipe.curriculum.stage_list[0]
    folder = run.root / stage.name
    folder.mkdir()
    train_stage(run, stage, folder)
    [((conversations, score, *_), _)] = told
    [prompt] = encode_prompts(run.tokenizer, conversations[:1])
    y_ref = run.template.parts(conversations[0])[1]
    rows = [prompt + encode_completion(run.tokenizer, y) for y in (y_ref, "nine")]
    unchanged, changed = score(rows, [conversations[0]] * 2).tolist()
    assert changed != unchanged
    assert (unchanged == pytest.approx(0.0, abs=1e-5)) is (reward == "reward_difference")


def test_ordinary_rlhf_shows_x_alone_and_is_anchored_to_the_sft_policy(desk, told):
    run = desk()
    folder = run.root / "policy-rl"
    assert train_policy(run, run.recipe.curriculum.rl, folder) == {"prompts": 4}
    [((conversations, *_, bench), named)] = told
    assert all(len(conversation) == 1 for conversation in conversations)
    assert bench.start == named["anchor"] == run.model("policy-sft")
    assert named["probe"].quality([PAIRS[0].prompt.as_messages()], ["a b c"]) == [3.0]
