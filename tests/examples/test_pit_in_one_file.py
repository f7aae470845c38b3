"""The example against the library, brute force and transformers: it must stay the same method."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import LlamaForSequenceClassification

from pitlm.core import equations
from pitlm.core.nouns import Answer, Preference, Prompt, StopReason
from pitlm.core.recipe import InitSection
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.data.template import Template, encode_completion, encode_prompts
from pitlm.evaluate.statistics import delta_interval
from pitlm.loop.loop import improve_many
from pitlm.models.loading import load_tokenizer
from pitlm.models.scratch import make_from_scratch
from pitlm.models.trees import score_ids
from pitlm.worlds.pocket import ASK, make_preferences, utility, vocabulary

PATH = Path(__file__).parents[2] / "examples" / "pit_in_one_file.py"
PAIRS = make_preferences(24, seed=5)
X = PAIRS[0].prompt


@pytest.fixture(scope="module")
def pit():
    spec = importlib.util.spec_from_file_location("pit_in_one_file", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses need their module here
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def writer(pit):
    """A writer with weights so large that its distributions are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = pit.make_writer(pit.TINY).eval()
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.3)
    return model


def scores(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


# The equations.


def test_the_gap_loss_is_the_librarys(pit):
    here, there = ([score.clone().requires_grad_() for score in scores(4, 7, seed=0)] for _ in range(2))
    loss, expected = pit.gap_loss(*here), equations.gap_loss(*there)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, here), torch.autograd.grad(expected, there))


def test_the_gap_rows_are_in_the_order_of_the_loss(pit):
    pair = Preference(X, "price nine .", "silly question .")
    y_w, y_l = pit.encode(pair.chosen), pit.encode(pair.rejected)
    for (candidate, reference), row in zip(
        [(y_w, y_l), (y_w, y_w), (y_l, y_l), (y_l, y_w)], pit.gap_rows(pair), strict=True
    ):
        x = pit.policy_prompt(X)
        assert row == [*x, *reference, pit.USER, pit.ID[ASK], pit.ASSISTANT, *candidate, pit.END]


def test_the_batch_loss_keeps_the_four_scores_of_a_triple_together(pit, writer):
    gap_model = pit.GapModel(writer)
    batch = [pit.gap_rows(pair) for pair in PAIRS[:5]]
    alone = [equations.gap_loss(*(gap_model([row]) for row in rows)) for rows in batch]
    torch.testing.assert_close(pit.gap_batch_loss(gap_model, batch), torch.stack(alone).mean())


def test_the_penalised_reward_by_hand(pit):
    reward = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    logp = torch.tensor([[-10.0, -4.0], [-3.0, -2.0]])
    anchor = torch.tensor([[-12.0, -4.0], [-2.0, -5.0]])
    # KL terms 2, 0, -1, 3 at beta 0.1
    expected = torch.tensor([[0.8, 2.0], [0.1, -1.3]])
    torch.testing.assert_close(pit.penalised_reward(reward, logp, anchor, beta=0.1), expected)
    torch.testing.assert_close(pit.penalised_reward(reward, logp, anchor, beta=0.0), reward)


def test_leave_one_out_by_brute_force(pit):
    rewards = scores(5, 4, seed=1)
    expected = [[row[i] - sum(row[:i] + row[i + 1 :]) / 3 for i in range(4)] for row in rewards.tolist()]
    torch.testing.assert_close(pit.leave_one_out(rewards), torch.tensor(expected))


def test_the_level_of_the_gap_drops_out_of_rl(pit):
    reward_BG = scores(5, 8, seed=2)
    torch.testing.assert_close(pit.leave_one_out(reward_BG + scores(5, 1, seed=3)), pit.leave_one_out(reward_BG))


def test_the_rloo_gradient_is_that_of_the_clipped_sequence_ratio(pit):
    """RLOO trainers minimise this: at the first step the ratio is 1 and the clip has no effect."""
    reward_BG, anchor_BG = scores(2, 4, 8, seed=4)
    logp_BG = scores(4, 8, seed=5).requires_grad_()
    reward = reward_BG - 0.1 * (logp_BG.detach() - anchor_BG)
    advantage = torch.stack(
        [torch.stack([row[g] - torch.cat([row[:g], row[g + 1 :]]).mean() for g in range(8)]) for row in reward]
    )
    ratio = torch.exp(logp_BG - logp_BG.detach())
    clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    (expected,) = torch.autograd.grad(-clipped.mean(), logp_BG)
    (found,) = torch.autograd.grad(pit.rloo_loss(reward_BG, logp_BG, anchor_BG, 0.1), logp_BG)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_the_rloo_gradient_is_exact_on_average(pit, beta):
    """The average over every group of 3 from 4 outcomes is the exact gradient of minus (E[r] - beta KL)."""
    logits, anchor_logits, reward = (score.double() for score in scores(3, 4, seed=6))
    logits.requires_grad_()
    anchor = log_softmax(anchor_logits, -1)
    expected_loss = torch.zeros((), dtype=torch.double)
    for group in itertools.product(range(4), repeat=3):
        chosen = torch.tensor([group])
        logp = log_softmax(logits, -1)
        loss = pit.rloo_loss(reward[chosen], logp[chosen], anchor[chosen], beta)
        expected_loss = expected_loss + logp[chosen].sum().exp().detach() * loss
    logp = log_softmax(logits, -1)
    objective = (logp.exp() * reward).sum() - beta * (logp.exp() * (logp - anchor)).sum()
    (found,) = torch.autograd.grad(expected_loss, logits)
    (exact,) = torch.autograd.grad(-objective, logits)
    torch.testing.assert_close(found, exact)


# Tokens and models.


def test_tokens_are_those_of_the_librarys_template(pit, tmp_path):
    init = InitSection(layers=1, hidden=16, heads=2, mlp=32, tokenizer="words")
    make_from_scratch(init, [], tmp_path, seed=0, max_tokens=256, words=vocabulary())
    tokenizer = load_tokenizer(tmp_path)
    template = Template(ASK)

    def words(ids: list[int]) -> list[str]:
        return tokenizer.convert_ids_to_tokens(ids)

    for pair in PAIRS:
        x, y_ref, y = pair.prompt, pair.rejected, pair.chosen
        shown, asked = encode_prompts(tokenizer, [template.improver_messages(x, y_ref), template.policy_messages(x)])
        assert [pit.WORDS[token] for token in pit.improver_prompt(x, y_ref)] == words(shown)
        assert [pit.WORDS[token] for token in pit.policy_prompt(x)] == words(asked)
        assert [pit.WORDS[token] for token in pit.completion(y)] == words(encode_completion(tokenizer, y))
        assert pit.decode(pit.completion(y)) == y


def test_the_gap_is_read_at_the_end_token_as_by_the_librarys_scorer(pit, writer):
    gap_model = pit.GapModel(writer).eval()
    there = LlamaForSequenceClassification(type(writer.config)(**{**writer.config.to_dict(), "num_labels": 1}))
    there.model.load_state_dict(gap_model.body.state_dict())
    there.score.load_state_dict(gap_model.head.state_dict())
    rows = [row for pair in PAIRS for row in pit.gap_rows(pair)]
    assert len({len(row) for row in rows}) > 3
    with torch.inference_mode():
        found = gap_model(rows)
        changed = gap_model([[*row[:-1], pit.ID["."]] for row in rows])
    torch.testing.assert_close(found, score_ids(there, rows), rtol=1e-4, atol=1e-5)
    assert (found - changed).abs().min() > 1e-4


def test_no_change_has_no_gap(pit, writer):
    gap_model = pit.GapModel(writer)
    xs, y_refs, ys = zip(*((pair.prompt, pair.rejected, pair.chosen) for pair in PAIRS), strict=True)
    assert pit.calibrated_gaps(gap_model, xs, y_refs, y_refs) == pytest.approx([0.0] * len(xs), abs=1e-5)
    with torch.inference_mode():
        for pair, gap in zip(PAIRS, pit.calibrated_gaps(gap_model, xs, y_refs, ys), strict=True):
            wl, _, ll, _ = gap_model(pit.gap_rows(pair))
            assert gap == pytest.approx(equations.calibrated_gap(wl, ll).item(), abs=1e-5)


def sft_rows(pit):
    return [(pit.improver_prompt(p.prompt, p.rejected), pit.completion(p.chosen)) for p in PAIRS[:6]]


def test_log_probabilities_are_those_of_one_row_and_one_token_at_a_time(pit, writer):
    prompts, completions = zip(*sft_rows(pit), strict=True)
    with torch.inference_mode():
        found = pit.token_logps(writer, prompts, completions).sum(1)
        for total, prompt, y in zip(found.tolist(), prompts, completions, strict=True):
            expected = 0.0
            for t, token in enumerate(y):
                logits = writer(input_ids=torch.tensor([prompt + y[:t]])).logits[0, -1]
                expected += log_softmax(logits, -1)[token].item()
            assert total == pytest.approx(expected, rel=1e-4)


def test_the_sft_loss_is_transformers_own(pit, writer):
    rows = sft_rows(pit)
    ids = pit.pad_right([p + y for p, y in rows])
    labels = pit.pad_right([[pit.PAD] * len(p) + y for p, y in rows])
    expected = writer(input_ids=ids, labels=labels.masked_fill(labels == pit.PAD, -100)).loss
    torch.testing.assert_close(pit.sft_loss(writer, rows), expected)


def test_sampling_at_no_temperature_is_greedy_row_by_row(pit, writer):
    prompts = [prompt for prompt, _ in sft_rows(pit)]
    assert len({len(prompt) for prompt in prompts}) > 1
    for prompt, found in zip(prompts, pit.sample(writer, prompts, temperature=1e-5, max_new=8), strict=True):
        expected: list[int] = []
        while len(expected) < 8 and pit.END not in expected:
            with torch.inference_mode():
                expected.append(int(writer(input_ids=torch.tensor([prompt + expected])).logits[0, -1].argmax()))
        assert found == expected


def test_samples_follow_the_models_distribution(pit, writer):
    prompt, count = pit.policy_prompt(X), 4000
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        firsts = torch.tensor([y[0] for y in pit.sample(writer, [prompt] * count, temperature=1.0, max_new=1)])
        probability = writer(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    frequency = torch.bincount(firsts, minlength=len(pit.WORDS)) / count
    deviation = (probability * (1 - probability) / count).sqrt()
    assert ((frequency - probability).abs() <= 4 * deviation + 1 / count).all()


def test_an_answer_ends_once(pit, writer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ys = pit.sample(writer, [pit.policy_prompt(X)] * 64, temperature=2.0, max_new=60)
    assert {y.count(pit.END) for y in ys} == {0, 1}
    assert all(y[-1] == pit.END for y in ys if pit.END in y)


def test_every_row_is_trained_on_once_an_epoch(pit):
    rows = [([index], [0] * (index % 7)) for index in range(150)]
    plan = list(pit.batches(rows, 8, 2, random.Random(0)))
    assert sorted(row[0][0] for batch in plan for row in batch) == sorted([*range(150)] * 2)
    assert [batch[0] for batch in plan[:19]] != [batch[0] for batch in plan[19:]]


# The loop and its evaluation.


class Script:
    """The same proposals and gaps for both loops. They depend on the input, so a wrong incumbent shows."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def propose(self, prompts, references, **sampling):
        self.calls.append((*prompts, *references))
        shown = zip(prompts, references, strict=True)
        return [self.draw(x, y_ref).choice([y_ref, f"{y_ref} .", f"{y_ref} nine", "thanks"]) for x, y_ref in shown]

    def gap(self, prompts, references, responses):
        shown = zip(prompts, references, responses, strict=True)
        return [self.draw(*row).choice([-1.0, 0.0, 0.25, 0.5, 1.0, 1.0, 1.0, 1.0]) for row in shown]

    @staticmethod
    def draw(x, *texts):
        return random.Random("|".join([x.text, *texts]))


class LibrarySide(Script):
    def propose(self, prompts, references, **sampling):
        return [Answer(text) for text in super().propose(prompts, references)]

    def gaps(self, items):
        return torch.tensor([self.gap([i.prompt], [i.reference], [i.response])[0] for i in items])


@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("margin", [0.0, 0.25, 0.6])
def test_the_loop_decides_as_the_librarys(pit, rounds, margin):
    xs = [Prompt.of(f"item {number} ?") for number in range(400)]
    originals = [f"answer {number}" for number in range(400)]
    here, there = Script(), LibrarySide()
    best, reasons, rows = pit.improve(xs, originals, here.propose, here.gap, rounds, margin)
    traces = improve_many(xs, originals, improver=there, gap=there, rounds=rounds, margin=margin)
    assert best == [trace.final for trace in traces]
    assert reasons == [trace.stop_reason for trace in traces]
    assert rows == [[(r.proposal, r.gap, r.accepted) for r in trace.rounds] for trace in traces]
    assert here.calls == there.calls
    assert set(reasons) == {StopReason.ACCEPTED_NONE, StopReason.CONVERGED, StopReason.ROUNDS}


def test_delta_is_the_librarys(pit):
    xs = [pair.prompt for pair in PAIRS]
    ours, theirs = [pair.chosen for pair in PAIRS], [pair.rejected for pair in PAIRS]
    rows = []
    for number, (x, a, b) in enumerate(zip(xs, ours, theirs, strict=True)):
        better = utility(x, a) - utility(x, b)
        verdict = Verdict.WIN if better > 0 else Verdict.LOSS if better < 0 else Verdict.TIE
        rows.append(VerdictRow(str(number), "ours", "theirs", verdict))
    expected = delta_interval(rows)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        estimate, low, high = pit.delta(xs, ours, theirs)
    assert estimate == pytest.approx(expected.estimate)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.06)


# The whole example.


def test_the_tiny_version_runs_to_its_end(pit, capsys, monkeypatch):
    stages = []

    def rl_stage(name, improver, anchor, gap_model, references, settings):
        before = {key: weight.clone() for key, weight in anchor.state_dict().items()}
        trained = original(name, improver, anchor, gap_model, references, settings)
        assert all(torch.equal(weight, before[key]) for key, weight in anchor.state_dict().items())
        stages.append((improver, anchor, trained, {y_ref for _, y_ref in references}))
        return trained

    original = pit.rl_stage
    monkeypatch.setattr(pit, "rl_stage", rl_stage)
    with torch.random.fork_rng():
        results = pit.main(pit.TINY)
    (start_0, anchor_0, end_0, references_0), (start_1, anchor_1, _, references_1) = stages
    assert start_0 is anchor_0 is anchor_1  # the SFT improver anchors both stages
    assert start_1 is end_0
    pairs = make_preferences(pit.TINY.pairs, seed=0)
    assert references_0 <= {y for pair in pairs for y in (pair.chosen, pair.rejected)}
    assert not references_1 <= references_0  # the references are the policy's own answers
    for name in ("original", "SFT improver"):
        estimate, low, high = results[name][name]
        assert (estimate, low) == (0.0, pytest.approx(-high))
    assert all(-1 <= low <= high <= 1 for row in results.values() for _, low, high in row.values())
    printed = capsys.readouterr().out
    for name in ("policy SFT", "improver SFT", "gap model", "RL stage 0", "RL stage 1", "PIT, loop", "loops stopped"):
        assert name in printed
