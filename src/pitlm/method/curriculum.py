"""Stage 3 of the paper, top to bottom: curriculum RL of the improver (Eq. 4, Eq. 5), and ordinary RLHF of the policy.

A stage of the curriculum samples its references once, from a frozen source. Then RLOO raises the gap between the
improver's answer and the reference. The KL anchor is the SFT improver in every stage.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pitlm.core.nouns import Prompt
from pitlm.core.training_sections import CurriculumStage, RLSection
from pitlm.data.folds import unique_prompts
from pitlm.engines.generators import Improver, Policy
from pitlm.io.atomic import read_json_lines, write_json_lines
from pitlm.io.console import progress_bar
from pitlm.method.rl import Reward, take_for_steps, train_rl
from pitlm.method.setting import Setting
from pitlm.method.watch import Probe
from pitlm.models.adapters import Bases
from pitlm.models.scorers import GapModel, RewardDifference, RewardModel

Reference = tuple[Prompt, str]
"""(x, y_ref)."""


def train_stage(run: Setting, stage: CurriculumStage, folder: Path) -> dict[str, Any]:
    """One stage of the curriculum, in its folder; an interrupted attempt keeps the references that it sampled."""
    path = folder / "references.jsonl"
    if path.is_file():
        references = read_json_lines(path, lambda row: (Prompt.of(row["prompt"]), str(row["reference"])))
    else:
        references = sample_references(run, stage)
        write_json_lines(path, ({"prompt": x.as_messages(), "reference": y} for x, y in references))
    run.train(folder, lambda: _reinforce(run, stage, references, folder))
    return {"references": len(references), "source": stage.source}


def sample_references(run: Setting, stage: CurriculumStage) -> list[Reference]:
    """The stage's (x, y_ref) from the fold `rl`: as many as its steps take.

    Source `data`: y_l and y_w (Eq. 4). Source `policy`: y_ref ~ M_P(. | x) (Eq. 5). Source `improver`: the answer of
    the policy, improved once by the improver of the stage before.
    """
    rng = random.Random(run.seed(stage.name))
    pairs = run.folds["rl"]
    if stage.source == "data":
        both = [(pair.prompt, y) for pair in pairs for y in (pair.rejected, pair.chosen)]
        return take_for_steps(rng, both, stage.rl)
    prompts = take_for_steps(rng, unique_prompts(pairs), stage.rl)
    improved_by = stage.previous if stage.source == "improver" else None
    with progress_bar("references", len(prompts) * (2 if improved_by else 1)) as advance:
        bases = run.bases()
        how: dict[str, Any] = {
            "temperature": run.recipe.curriculum.reference_temperature,
            "seed": run.seed(f"references-{stage.number}"),
            "advance": advance,
        }
        policy = run.open(Policy, run.recipe.policy_stage, bases)
        policy.batch_size = run.recipe.evaluation.batch_size
        answers = policy.answer(prompts, **how)
        if improved_by:
            improver = run.open(Improver, improved_by, bases)
            improver.batch_size = policy.batch_size
            answers = improver.propose(prompts, [answer.text for answer in answers], **how)
    return [(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]


def _reinforce(run: Setting, stage: CurriculumStage, references: Sequence[Reference], folder: Path) -> dict[str, float]:
    anchor, previous, bases = run.model("improver-sft"), stage.previous, run.bases()
    # With LoRA the weights under the adapter stay those of the anchor, and the adapter of the stage before is trained
    # further. Reward model, judge and policy share the base of the run. The trained model cannot share it, because it
    # sits on merged weights.
    lora = run.recipe.peft is not None
    start = run.model(previous) if previous and not lora else anchor
    adapter = run.model(previous) if previous and lora else None
    shown = [run.template.improver_messages(x, y_ref) for x, y_ref in references]
    reward, bench = _reward(run, references, bases), run.bench(folder, start, "improver")
    title, probe = f"RL stage {stage.number} ({stage.source})", _probe(run, stage, bases)
    return train_rl(shown, reward, stage.rl, bench, title=title, anchor=anchor, adapter=adapter, probe=probe)


def _reward(run: Setting, references: Sequence[Reference], bases: Bases) -> Reward:
    """R_PIT; or R_P(y) - R_P(y_ref), if the recipe asks for this ablation."""
    if run.recipe.curriculum.reward == "gap":
        gap = run.open(GapModel, "gap", bases)
        return lambda rows, _: gap.score_rows(rows)
    return RewardDifference(run.open(RewardModel, "reward", bases)).row_reward(references)


def _probe(run: Setting, stage: CurriculumStage, bases: Bases) -> Probe:
    """A probe: the judge's quality of the improver's answers. The policy first answers the held-out prompts once."""
    writer = run.open(Policy, run.recipe.policy_stage, bases)
    prompts = _held_out(run, stage.rl)
    answers = writer.answer(prompts, temperature=run.recipe.evaluation.policy_temperature, seed=run.seed("probe"))
    del writer  # training needs its memory
    held_out = [run.template.improver_messages(x, y.text) for x, y in zip(prompts, answers, strict=True)]
    quality = run.quality(bases)
    return Probe(lambda shown, texts: quality([run.template.parts(each)[0] for each in shown], texts), held_out)


def _held_out(run: Setting, section: RLSection) -> list[Prompt]:
    return unique_prompts(run.folds["validation"])[: section.probe_items]


def train_policy(run: Setting, section: RLSection, folder: Path) -> dict[str, Any]:
    """Ordinary RLHF of the policy on R_P, anchored to the SFT policy: M_P of the later stages."""
    prompts = take_for_steps(random.Random(run.seed(folder.name)), unique_prompts(run.folds["rl"]), section)
    anchor = run.model("policy-sft")

    def reinforce() -> dict[str, float]:
        bases = run.bases()
        reward = run.open(RewardModel, "reward", bases)
        held_out = [run.template.policy_messages(x) for x in _held_out(run, section)]
        quality, bench = run.quality(bases), run.bench(folder, anchor, "policy")
        probe = Probe(lambda asked, texts: quality([Prompt.of(each) for each in asked], texts), held_out)
        shown = [run.template.policy_messages(prompt) for prompt in prompts]
        rewarded: Reward = lambda rows, _: reward.score_rows(rows)  # noqa: E731
        return train_rl(shown, rewarded, section, bench, title="policy RL", anchor=anchor, probe=probe)

    run.train(folder, reinforce)
    return {"prompts": len(prompts)}
