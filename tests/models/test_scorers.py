"""Reward and gap models: the place of the score, and that other rows do not change it."""

from __future__ import annotations

import math

import pytest
import torch
from builders import ASK, scorer_checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pitlm.core.nouns import Improvement, Prompt
from pitlm.data.template import encode_completion, encode_prompts
from pitlm.models.loading import load_tokenizer
from pitlm.models.scorers import GapModel, GuardedGap, RewardDifference, RewardModel, load_gaps, score_ids

X = Prompt.of("what is the price ?")
RESPONSES = [
    "the price is nine .",
    "silly question .",
    "the price is nine . happy to help . read it yourself .",
    "nine",
]
FAMILIES = ("words", "llama3", "qwen3", "gpt")


@pytest.fixture(params=FAMILIES)
def gap(request, bases, tmp_path):
    return GapModel.from_pretrained(scorer_checkpoint(bases(request.param), tmp_path / "gap", "gap"))


def rows_of(model, responses=RESPONSES, reference="silly question ."):
    [prompt] = encode_prompts(model.tokenizer, [model.template.improver_messages(X, reference)])
    return [prompt + encode_completion(model.tokenizer, response) for response in responses]


def test_the_score_is_read_at_the_end_token(gap):
    """By hand: the head on the last hidden state of the separate row."""
    rows = rows_of(gap)
    for row, score in zip(rows, gap.score_rows(rows).tolist(), strict=True):
        assert row[-1] == gap.tokenizer.eos_token_id
        with torch.no_grad():
            hidden = gap.model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
            expected = (gap.model.score.weight @ hidden).item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_the_end_token_is_seen(gap):
    [row] = rows_of(gap, RESPONSES[:1])
    other = (gap.tokenizer.eos_token_id + 7) % len(gap.tokenizer)
    scores = gap.score_rows([row, row[:-1], [*row[:-1], other]]).tolist()
    assert abs(scores[0] - scores[1]) > 1e-4
    assert abs(scores[0] - scores[2]) > 1e-4


def test_padding_and_neighbours_do_not_change_scores(gap):
    rows = rows_of(gap)
    alone = torch.cat([gap.score_rows([row]) for row in rows])
    together = gap.score_rows(rows)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    backwards = gap.score_rows(rows[::-1]).flip(0)
    torch.testing.assert_close(backwards, alone, atol=1e-5, rtol=0)
    pad = gap.tokenizer.pad_token_id
    small_batches = score_ids(gap.model, rows, tokens_per_batch=1)
    torch.testing.assert_close(small_batches, alone, atol=1e-5, rtol=0)
    wide = max(map(len, rows)) + 5
    ids = torch.tensor([row + [pad] * (wide - len(row)) for row in rows])
    with torch.no_grad():
        padded = gap.model(input_ids=ids, attention_mask=(ids != pad).long()).logits.squeeze(-1)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


def test_an_answer_to_itself_has_gap_zero_exactly(gap):
    for response in RESPONSES:
        assert gap.gap(X, response, response) == 0.0
    items = [Improvement(X, y, y) for y in RESPONSES] + [Improvement(X, RESPONSES[0], RESPONSES[1])]
    assert gap.gaps(items)[:4].tolist() == [0.0] * 4
    assert gap.gaps(items)[4].item() != 0.0


def test_a_gap_is_the_raw_score_less_that_of_the_reference_against_itself(gap):
    y_ref, y = RESPONSES[1], RESPONSES[0]
    raw = gap.raw([Improvement(X, y_ref, y), Improvement(X, y_ref, y_ref)]).tolist()
    assert gap.gap(X, y, y_ref) == pytest.approx(raw[0] - raw[1], abs=1e-5)


def test_the_reference_and_the_prompt_matter(gap):
    y = RESPONSES[0]
    items = [
        Improvement(X, RESPONSES[1], y),
        Improvement(X, RESPONSES[3], y),
        Improvement(Prompt.of("is it small ?"), RESPONSES[1], y),
    ]
    assert len({round(score, 5) for score in gap.raw(items).tolist()}) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_needs_nothing_of_ours(bases, tmp_path, family):
    """Plain transformers give the same score for the written-out conversation."""
    folder = scorer_checkpoint(bases(family), tmp_path / "gap", "gap")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    conversation = [
        {"role": "user", "content": "what is the price ?"},
        {"role": "assistant", "content": "silly question ."},
        {"role": "user", "content": ASK},
    ]
    ids = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
    )["input_ids"]
    ids = ids + tokenizer.encode("the price is nine .", add_special_tokens=False) + [tokenizer.eos_token_id]
    with torch.no_grad():
        plain = model(input_ids=torch.tensor([ids])).logits.item()
    ours = GapModel.from_pretrained(folder).raw([Improvement(X, "silly question .", "the price is nine .")]).item()
    assert ours == pytest.approx(plain, abs=1e-5)


def test_a_reward_model_reads_x_and_y_only(bases, tmp_path):
    reward = RewardModel.from_pretrained(scorer_checkpoint(bases("llama3"), tmp_path / "reward", "reward"))
    [prompt] = encode_prompts(reward.tokenizer, [X.as_messages()])
    row = prompt + encode_completion(reward.tokenizer, "nine")
    assert reward.score("what is the price ?", "nine") == pytest.approx(reward.score_rows([row]).item(), abs=1e-6)
    assert reward.scores([X, X], ["nine", "nine"]).tolist() == pytest.approx([reward.score(X, "nine")] * 2, abs=1e-5)


@pytest.mark.parametrize("family", ["words", "llama3"])
def test_the_difference_of_rewards_is_what_it_says(family, bases, tmp_path):
    reward = RewardModel.from_pretrained(scorer_checkpoint(bases(family), tmp_path / "reward", "reward"))
    difference = RewardDifference(reward)
    items = [Improvement(X, y_ref, y) for y_ref in RESPONSES[:2] for y in RESPONSES]
    by_hand = [reward.score(X, item.response) - reward.score(X, item.reference) for item in items]
    assert difference.gaps(items).tolist() == pytest.approx(by_hand, abs=1e-5)
    assert difference.gaps([Improvement(X, "nine", "nine")]).item() == 0.0  # no change, no gap

    # In RL a row has the tokens of x, y_ref, the ask and y; R_P must read it without y_ref.
    shown = [reward.template.improver_messages(X, i.reference) for i in items]
    prompts = encode_prompts(reward.tokenizer, shown)
    rows = [ids + encode_completion(reward.tokenizer, i.response) for ids, i in zip(prompts, items, strict=True)]
    references = [(X, RESPONSES[0]), (Prompt.of("it ?"), "it is red ."), (X, RESPONSES[1])]
    assert difference.row_reward(references)(rows, shown).tolist() == pytest.approx(by_hand, abs=1e-5)


def test_pad_equal_to_end_is_refused(bases, tmp_path):
    folder = scorer_checkpoint(bases("words"), tmp_path / "gap", "gap")
    whole = GapModel.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="pad equals the end token"):
        GapModel(whole.model, tokenizer, whole.card)


def test_scoring_leaves_the_model_in_its_mode(gap):
    gap.model.train()
    gap.score_rows(rows_of(gap))
    assert gap.model.training


def test_no_rows_no_scores(gap):
    assert gap.score_rows([]).tolist() == []


def test_a_second_opinion_is_the_smaller_of_the_two(bases, tmp_path):
    models = [scorer_checkpoint(bases("words"), tmp_path / kind, kind) for kind in ("gap", "reward")]
    guarded = load_gaps(*models)
    gap, reward = GapModel.from_pretrained(models[0]), RewardModel.from_pretrained(models[1])
    pairs = [(a, b) for a in RESPONSES for b in RESPONSES]
    found = dict(zip(pairs, guarded.gaps([Improvement(X, b, a) for a, b in pairs]).tolist(), strict=True))
    for (y, y_ref), value in found.items():
        forth, back = gap.raw([Improvement(X, y_ref, y), Improvement(X, y, y_ref)]).tolist()
        expected = min(forth - back, reward.score(X, y) - reward.score(X, y_ref))
        assert value == pytest.approx(expected, abs=1e-5)
        assert y != y_ref or value == pytest.approx(0.0, abs=1e-6)
        assert min(value, found[y_ref, y]) <= 1e-6  # never better in both directions
    assert guarded.gaps([]).shape == (0,)


def groups_of_improvements():
    """Several prompts and references, with a response equal to its reference, a group of one and an empty group."""
    prompts = [X, Prompt.of("is it small ?"), Prompt.of("what is it ?")]
    made = [
        [Improvement(x, y, r) for r in RESPONSES[: 1 + n % 3]]
        for n, (x, y) in enumerate(zip(prompts * 4, RESPONSES * 3, strict=True))
    ]
    return [*made, []]


@pytest.mark.parametrize("guarded", [False, True])
def test_groups_are_scored_together_as_they_are_alone(gap, bases, tmp_path, guarded):
    scorer = gap
    if guarded:
        reward = RewardModel.from_pretrained(scorer_checkpoint(bases("words"), tmp_path / "reward", "reward", seed=2))
        scorer = GuardedGap(gap, reward)
    groups = groups_of_improvements()
    together = scorer.gaps_apart(groups)
    for group, found in zip(groups, together, strict=True):
        assert found == scorer.gaps_apart([group])[0]  # bit for bit
        if group:
            assert found == pytest.approx(scorer.gaps(group).tolist(), abs=1e-5)
    assert scorer.gaps_apart(groups[::-1]) == together[::-1]
    assert together[0] == [scorer.gaps_apart([[groups[0][0]]])[0][0]]


def test_what_is_longer_than_the_window_has_no_gap_and_leaves_the_others_alone(bases, tmp_path):
    gap = GapModel.from_pretrained(scorer_checkpoint(bases("words"), tmp_path / "gap", "gap"))
    short, long = Improvement(X, RESPONSES[1], RESPONSES[3]), Improvement(X, RESPONSES[1], RESPONSES[2])
    [expected] = gap.gaps_apart([[short]])
    gap.model.config.max_position_embeddings = len(rows_of(gap)[2]) - 1
    found = gap.gaps_apart([[short, long], [long], [short]])
    assert [found[0][0], found[2][0]] == expected * 2
    assert math.isnan(found[0][1])
    assert math.isnan(found[1][0])


def test_a_copy_of_the_reference_costs_nothing(gap, monkeypatch):
    monkeypatch.setattr(type(gap.model), "forward", None)
    assert gap.gaps_apart([[Improvement(X, y, y)] for y in RESPONSES]) == [[0.0]] * len(RESPONSES)
