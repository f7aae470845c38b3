"""Foreign reward models: scores equal their makers' own, in batches and alone."""

from __future__ import annotations

import math

import pytest
import torch
from builders import TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    PreTrainedTokenizerFast,
)

from pitlm.core.errors import InputError
from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.nouns import Message, Prompt
from pitlm.core.verdicts import Comparison, Verdict
from pitlm.judge.scores import checkpoint_judge
from pitlm.models.foreign import ForeignRewardModel

TALK = Prompt((Message("user", "is it small ?"), Message("assistant", "it is small ."), Message("user", "the price ?")))
PROMPTS = [Prompt.of("what is the price of the red lamp ?"), Prompt.of("is it small ?"), TALK]
ANSWERS = ["the price is nine .", "silly question . read it yourself . happy to help .", "nine ."]


def deberta_tokenizer():
    words = sorted({word for text in TEXTS for word in text.split()} | {"Human:", "Assistant:"})
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def deberta(folder, **kwargs):
    """Shaped like DeBERTa-v3: relative positions alone, shared keys, text pairs, no chat template."""
    tokenizer = deberta_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pad_token_id": 0,
        "num_labels": 1,
        "initializer_range": 0.5,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(DebertaV2Config(**{**shape, **kwargs}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deberta_folder(tmp_path_factory):
    return deberta(tmp_path_factory.mktemp("deberta"))


def foreign_chat(base, folder):
    """A reward model on a chat model, as the makers of such models publish them."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        torch.nn.init.normal_(model.score.weight)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def alone(folder, ids):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in ids]


def test_a_deberta_reads_question_and_answer_as_a_pair(deberta_folder):
    tokenizer = deberta_tokenizer()
    talk = "Human: is it small ? Assistant: it is small . Human: the price ?"
    questions = [PROMPTS[0].text, PROMPTS[1].text, talk]
    plain = [[tokenizer.convert_tokens_to_ids(text.split()) for text in texts] for texts in (questions, ANSWERS)]
    ids = [[2, *question, 3, *answer, 3] for question, answer in zip(*plain, strict=True)]
    scores = ForeignRewardModel.from_pretrained(deberta_folder).scores(PROMPTS, ANSWERS)
    torch.testing.assert_close(scores, torch.tensor(alone(deberta_folder, ids)), atol=1e-5, rtol=1e-5)
    assert scores.std() > 1e-3


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_a_chat_model_reads_the_conversation_with_the_answer_in_it(family, bases, tmp_path):
    folder = foreign_chat(bases(family), tmp_path / family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [[*p.as_messages(), {"role": "assistant", "content": a}] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    texts = [tokenizer.apply_chat_template(t, tokenize=False, enable_thinking=False) for t in turns]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    scores = ForeignRewardModel.from_pretrained(folder).scores(PROMPTS, ANSWERS)
    torch.testing.assert_close(scores, torch.tensor(alone(folder, ids)), atol=1e-5, rtol=1e-5)
    assert scores.std() > 1e-3


def test_a_score_does_not_depend_on_what_is_scored_with_it(deberta_folder):
    model = ForeignRewardModel.from_pretrained(deberta_folder)
    together = model.scores(PROMPTS * 2, ANSWERS + ANSWERS[::-1])
    one_by_one = [float(model.scores([p], [a])[0]) for p, a in zip(PROMPTS * 2, ANSWERS + ANSWERS[::-1], strict=True)]
    torch.testing.assert_close(together, torch.tensor(one_by_one), atol=1e-5, rtol=1e-5)
    assert model.scores([], []).shape == (0,)


def test_a_pair_that_is_too_long_is_no_verdict_and_the_others_are_judged(tmp_path):
    model = deberta(tmp_path / "short", position_biased_input=True, max_position_embeddings=12)
    scores = ForeignRewardModel.from_pretrained(model).scores(PROMPTS[1:2] * 2, ["nine .", "nine . " * 9])
    assert [math.isnan(score) for score in scores] == [False, True]
    (row,) = checkpoint_judge(JudgeSection(kind="foreign", model=str(model))).judge(
        [Comparison(PROMPTS[1], "nine .", "nine . " * 9)]
    )
    assert row.verdict is Verdict.UNPARSABLE


def test_positions_that_are_relative_set_no_limit(deberta_folder):
    assert not ForeignRewardModel.from_pretrained(deberta_folder).scores(PROMPTS[:1], ["nine . " * 40]).isnan().any()


def test_weights_that_are_missing_are_refused(bases, tmp_path):
    """A causal model would load too, with a random head."""
    with pytest.raises(InputError, match=r"found no weights for score\.weight"):
        ForeignRewardModel.from_pretrained(bases("llama3"))
    tokenizer = AutoTokenizer.from_pretrained(bases("llama3"))
    two = AutoModelForSequenceClassification.from_pretrained(bases("llama3"), num_labels=2)
    two.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="found 2 logits"):
        ForeignRewardModel.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot load a reward model"):
        ForeignRewardModel.from_pretrained("nowhere/at-all")


def test_a_checkpoint_s_card_says_how_it_judges(bases, tmp_path):
    from builders import scorer_checkpoint

    from pitlm.models.loading import Card, save
    from pitlm.models.scorers import GapModel, RewardModel

    pair = Comparison(PROMPTS[1], ANSWERS[0], ANSWERS[1], "7", ("m", "n"))
    reward = scorer_checkpoint(bases("words"), tmp_path / "reward", "reward")
    (row,) = checkpoint_judge(JudgeSection(kind="foreign", model=str(reward))).judge([pair])
    r = RewardModel.from_pretrained(reward)
    assert row.scores == (r.score(pair.prompt, pair.first), r.score(pair.prompt, pair.second))
    assert row.verdict is (Verdict.WIN if row.scores[0] > row.scores[1] else Verdict.LOSS)
    gap = scorer_checkpoint(bases("words"), tmp_path / "gap", "gap")
    (row,) = checkpoint_judge(JudgeSection(kind="foreign", model=str(gap))).judge([pair])
    g = GapModel.from_pretrained(gap)
    gaps = (g.gap(pair.prompt, pair.first, pair.second), g.gap(pair.prompt, pair.second, pair.first))
    assert [float(reply.text) for reply in row.replies] == pytest.approx(gaps, abs=1e-5)
    policy = AutoModelForCausalLM.from_pretrained(bases("words"))
    save(policy, AutoTokenizer.from_pretrained(bases("words")), Card("policy", "ask", 8), tmp_path / "policy")
    with pytest.raises(InputError, match="found a model trained as policy"):
        checkpoint_judge(JudgeSection(kind="foreign", model=str(tmp_path / "policy")))


def test_a_mere_adapter_is_told_from_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="found an adapter of PEFT, expected a whole model; merge it"):
        checkpoint_judge(JudgeSection(kind="foreign", model=str(tmp_path)))
