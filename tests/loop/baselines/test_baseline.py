"""Which baselines take part, and that they request exactly the work that they declare."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt
from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.loop.baselines.baseline import BASELINES, CHAIN_ROUNDS, Work, chosen_baselines, work_per_item
from pitlm.loop.baselines.guide import PROMPTS
from pitlm.loop.systems import Systems, TrainedModels, comparisons

RECIPE = load_recipe(find_recipe("quickstart"))


def naming(*baselines, recipe=RECIPE):
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"baselines": list(baselines)})})


def titles(recipe):
    return [baseline.title for baseline in chosen_baselines(recipe)]


def test_all_that_apply_take_part_in_the_order_of_the_tables():
    expected = [
        "resample",
        "best-of-N with R_P",
        "best-of-N with R_PIT",
        "SFT-only improver",
        "SFT-only improver + loop",
        "PIT with R_P difference",
        "PIT, 1 round, no stop rule",
    ]
    early = "PIT after stage 0, 1 round"
    assert RECIPE.policy_rl is None
    assert titles(RECIPE) == [*expected, early]
    with_rlhf = RECIPE.model_copy(update={"policy_rl": RECIPE.curriculum.rl})
    assert titles(with_rlhf) == [expected[0], "policy before RLHF", *expected[1:], early]
    sft = with_rlhf.model_copy(update={"model": RECIPE.model.model_copy(update={"policy": "sft"})})
    assert titles(sft) == [expected[0], "policy after RLHF", "PIT on the policy after RLHF", *expected[1:], early]
    before = [name for name in BASELINES if not name.endswith("after-rlhf")]
    assert [*titles(naming(*before, recipe=with_rlhf)), early] == titles(with_rlhf)


def test_a_recipe_names_those_it_wants():
    assert titles(naming("one-round", "resample")) == ["PIT, 1 round, no stop rule", "resample"]
    assert titles(naming()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["resampel"], "evaluation.baselines: found 'resampel', did you mean 'resample'? Known: resample, before-rlhf"),
        (["before-rlhf"], "evaluation.baselines: found 'before-rlhf', which needs the section policy_rl"),
        (
            ["after-rlhf"],
            "evaluation.baselines: found 'after-rlhf', which needs the section policy_rl, and model.policy",
        ),
        (["sft", "sft"], "evaluation: found two systems called 'SFT-only improver', expected one"),
    ],
)
def test_a_baseline_that_cannot_take_part_is_refused(names, message):
    with pytest.raises(InputError) as refused:
        chosen_baselines(naming(*names))
    assert str(refused.value).startswith(message)


def test_pit_is_compared_with_its_closest_rivals_first():
    assert comparisons(chosen_baselines(RECIPE)) == [
        ("PIT", "SFT-only improver"),
        ("PIT", "SFT-only improver + loop"),
        ("PIT", "best-of-N with R_P"),
        ("PIT", "best-of-N with R_PIT"),
        ("PIT", "PIT with R_P difference"),
        ("PIT", "PIT, 1 round, no stop rule"),
        ("PIT, 1 round, no stop rule", "SFT-only improver"),
    ]
    assert comparisons(chosen_baselines(naming("resample", "sft"))) == [("PIT", "SFT-only improver")]


class Counting:
    """All models in one: answers and proposals take 4 tokens, each proposal is longer, and the longest is the best."""

    def __init__(self):
        self.answers = self.proposals = self.gap_scores = self.rewards = 0

    def answer(self, prompts, *, temperature, seed, advance=None):
        self.answers += len(prompts)
        return [Answer(f"a{seed}", 4) for _ in prompts]

    def propose(self, prompts, references, *, temperature, seed):
        self.proposals += len(prompts)
        return [Answer(y + "+", 4) for y in references]

    def gaps(self, items):
        self.gap_scores += len(items)
        return torch.tensor([float(len(item.response) - len(item.reference)) for item in items])

    def raw(self, items):
        self.rewards += len(items)
        return torch.tensor([float(len(item.response)) for item in items])


@pytest.mark.parametrize("name", [None, *BASELINES])
def test_the_work_that_is_declared_is_the_work_that_is_asked_for(name):
    policy = "sft" if name and name.endswith("after-rlhf") else "rlhf"
    model = RECIPE.model.model_copy(update={"policy": policy})
    recipe = RECIPE.model_copy(update={"policy_rl": RECIPE.curriculum.rl, "model": model})
    baselines = chosen_baselines(recipe if name is None else naming(name, recipe=recipe))
    prompts, all_ = [Prompt.of("one"), Prompt.of("two")], Counting()
    originals = all_.answer(prompts, temperature=1.0, seed=0)
    models = TrainedModels(all_, all_, all_, all_, all_, all_)
    given = (prompts, originals, models, LoopSection(rounds=3), 1.0, lambda purpose: 7)
    systems = Systems(*given, open_improver=lambda stage: all_)
    systems.traces(baselines)
    assert [len(chain) for chain in systems.chains.values()] == [2, 2]
    asked = Work(*(count / 2 for count in (all_.answers, all_.proposals, all_.gap_scores, all_.rewards)))
    assert work_per_item(baselines, 3) == asked
    if not baselines:
        assert asked == Work(1, 3 + 2 * CHAIN_ROUNDS, 3, 0)


def test_work_adds_up():
    given = [replace(chosen_baselines(RECIPE)[3], work=lambda rounds, samples: Work(10, 20, 30, 40))] * 2
    assert work_per_item(given, 3) == Work(21, 43 + 2 * CHAIN_ROUNDS, 63, 80)
    free = replace(chosen_baselines(RECIPE)[0], work=lambda rounds, samples: Work(), draws=False)
    assert work_per_item([], 2.2) == work_per_item([free], 2.2) == Work(1, 2.2 + 2 * CHAIN_ROUNDS, 2.2, 0)


class Refiner:
    """Finds fault once with each answer, and adds a mark to it."""

    def __init__(self):
        self.asked = []

    def encode(self, prompt):
        if prompt.messages[0].content == "long":
            raise InputError("found a conversation of 900 tokens, expected at most 502")

    def answer(self, prompts, *, temperature, seed, advance):
        advance(len(prompts))
        self.asked += [prompt.text for prompt in prompts]
        self.temperatures = {temperature}
        drafts = [prompt.messages[-2].content for prompt in prompts]
        if re.search("anew|Rewrite", prompts[0].text):
            return [Answer("better", 3, 9) for _ in drafts]
        return [Answer("Nothing to improve" if draft == "better" else "too short", 2, 9) for draft in drafts]


def test_the_start_model_refines_its_answers_by_each_named_guide(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("rubric: {a: cats}\nfeedback: About {rubric}?\nrefine: Write it anew.\ndone: Nothing\n")
    section = RECIPE.evaluation.model_copy(update={"baselines": [], "self_refine": ["house_style", str(own)]})
    baselines = chosen_baselines(RECIPE.model_copy(update={"evaluation": section}))
    assert [baseline.title for baseline in baselines] == ["Self-Refine: house_style", "Self-Refine: mine"]
    all_, refiner = Counting(), Refiner()
    models = TrainedModels(all_, all_, all_, all_, all_, all_)
    loop, prompts = LoopSection(rounds=2), [Prompt.of("one"), Prompt.of("long"), Prompt.of("two")]
    originals = [Answer("a"), Answer("b"), Answer("c")]
    systems = Systems(prompts, originals, models, loop, 1.0, lambda purpose: 7, None, lambda: refiner)
    for baseline, request, replies in zip(baselines, ("Rewrite your answer", "About cats?"), (1, 3), strict=True):
        refiner.asked.clear()
        assert [trace.final for trace in baseline.traces(systems)] == ["better", "b", "better"]
        assert len(refiner.asked) == 2 * replies  # of two answers: a rewrite; or feedback, a rewrite and feedback
        assert request in refiner.asked[0]


def test_prompts_may_set_their_own_rounds_and_temperature(tmp_path):
    own = tmp_path / "once.yaml"
    own.write_text("rubric: {}\nfeedback: null\nrefine: Write it anew.\nrounds: 1\ntemperature: 0\n")
    section = RECIPE.evaluation.model_copy(update={"baselines": [], "self_refine": [str(own)]})
    [baseline] = chosen_baselines(RECIPE.model_copy(update={"evaluation": section}))
    assert baseline.work(5, 3).answers == 1
    all_, refiner = Counting(), Refiner()
    models = TrainedModels(all_, all_, all_, all_, all_, all_)
    loop = LoopSection(rounds=5)
    systems = Systems([Prompt.of("one")], [Answer("a")], models, loop, 1.0, lambda purpose: 7, None, lambda: refiner)
    [trace] = baseline.traces(systems)
    assert (trace.final, len(trace.rounds), len(refiner.asked)) == ("better", 1, 1)
    assert refiner.temperatures == {0}


def test_each_earlier_stage_of_the_curriculum_takes_part_and_no_stage_that_was_not_trained():
    curriculum = RECIPE.curriculum.model_copy(update={"stages": ["data", "policy", "improver"], "steps": None})
    recipe = RECIPE.model_copy(update={"curriculum": curriculum})
    early = [b for b in chosen_baselines(recipe) if b.title.startswith("PIT after stage")]
    assert [b.title for b in early] == ["PIT after stage 0, 1 round", "PIT after stage 1, 1 round"]
    prompts, all_, opened = [Prompt.of("one")], Counting(), []
    models = TrainedModels(all_, all_, all_, all_, all_, all_)
    systems = Systems(prompts, [Answer("a")], models, LoopSection(rounds=3), 1.0, lambda purpose: 7)
    systems.open_improver = lambda stage: opened.append(stage) or all_
    for baseline in early:
        [trace] = baseline.traces(systems)
        assert [step.accepted for step in trace.rounds] == [True]
    assert opened == ["rl-0-data", "rl-1-policy"]
    assert not [b for b in chosen_baselines(naming("sft")) if b.title.startswith("PIT after stage")]


def test_the_loop_also_runs_with_the_margin_that_its_harm_asks_for():
    """The scorer prefers longer answers. The judge finds each of the further answers worse: no margin is safe."""
    section = RECIPE.evaluation.model_copy(update={"baselines": [], "harm": 0.1})
    [baseline] = chosen_baselines(RECIPE.model_copy(update={"evaluation": section}))
    assert baseline.title == "PIT, margin for 10% harm"
    prompts, all_ = [Prompt.of("one")], Counting()
    models = TrainedModels(all_, all_, all_, all_, all_, all_)
    systems = Systems(prompts, [Answer("a")], models, LoopSection(rounds=2), 1.0, lambda purpose: 7)
    systems.choosing = lambda: [(Prompt.of(f"x{number}"), "y") for number in range(30)]
    for better, accepted in ((1.0, True), (-1.0, False)):
        systems.open_quality = lambda better=better: lambda prompts, texts: [better * len(text) for text in texts]
        [trace] = baseline.traces(systems)
        assert trace.rounds[0].accepted is accepted
    systems.choosing = lambda: [(Prompt.of("x"), "y")]  # too few to promise anything
    assert not baseline.traces(systems)[0].rounds[0].accepted
    assert systems.pit[0].rounds[0].accepted


def test_a_guide_that_is_not_there_is_named():
    section = RECIPE.evaluation.model_copy(update={"self_refine": ["nowhere.yaml"]})
    with pytest.raises(
        InputError,
        match=r"nowhere\.yaml: found no such file of prompts \(evaluation\.self_refine\), expected .* one of house_style, ",
    ):
        chosen_baselines(RECIPE.model_copy(update={"evaluation": section}))


def test_two_guides_of_one_name_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rubric.yaml").write_text((PROMPTS / "house_style.yaml").read_text())
    guides = [str(tmp_path / name / "rubric.yaml") for name in ("a", "b")]
    section = RECIPE.evaluation.model_copy(update={"self_refine": guides})
    with pytest.raises(InputError, match="found two systems called 'Self-Refine: rubric'"):
        chosen_baselines(RECIPE.model_copy(update={"evaluation": section}))
