"""Self-Refine with a scripted chat model: its requests, its results, its cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pitlm.core.errors import InputError
from pitlm.core.nouns import Answer, Prompt, StopReason
from pitlm.engines.engine import Engine, Finished
from pitlm.engines.generators import Policy
from pitlm.loop.baselines.guide import Guide
from pitlm.loop.baselines.self_refine import self_refine

X = Prompt.of("x")
GUIDE = Guide(
    rubric={"short": "It is short.", "kind": "It is kind."},
    feedback="Feedback by:\n{rubric}",
    refine="Better.",
    done="fine",
    score=r"score (\d+)",
)
APART = GUIDE.model_copy(
    update={"apart": True, "score": None, "feedback": "is it {rubric}", "refine": "make it {rubric}"}
)


@dataclass
class Chat:
    """Replies from a table, by the conversation's last answer and the request about it."""

    feedback: dict
    rewrites: dict
    calls: list = field(default_factory=list)

    def answer(self, prompts, *, temperature, seed):
        conversations = [prompt.as_messages() for prompt in prompts]
        self.calls.append((conversations, temperature, seed))
        return [self.reply(turns) for turns in conversations]

    def reply(self, turns):
        *_, answer, request = turns
        assert (answer["role"], request["role"]) == ("assistant", "user")
        if request["content"].startswith(("Better", "make it")):  # the answer is the turn before the feedback's request
            text = self.rewrites[turns[-4]["content"], request["content"].removeprefix("make it ")]
        else:
            text = self.feedback[answer["content"], request["content"].removeprefix("is it ")]
        return Answer(text, generated_tokens=len(text), prompt_tokens=100)


class Together(Chat):
    def reply(self, turns):
        *_, answer, request = turns
        better = request["content"] == "Better."
        text = self.rewrites[turns[-4]["content"]] if better else self.feedback[answer["content"]]
        return Answer(text, generated_tokens=len(text), prompt_tokens=100)


def scripted():
    return Together(
        {"a": "bad score 1", "b": "good score 7", "c": "meh score 3", "d": "fine score 9"},
        {"a": "b", "b": "c", "c": "d"},
    )


def test_feedback_then_refine_until_the_rounds_are_spent():
    (trace,) = self_refine([X], ["a"], chat=scripted(), guide=GUIDE, rounds=2)
    assert trace.responses == ("a", "b", "c")
    assert trace.stop_reason is StopReason.ROUNDS
    assert trace.gaps[0] == 6.0  # by the model's own scores, if it gave any


def test_it_stops_where_the_feedback_asks_for_nothing_more():
    chat = scripted()
    (trace,) = self_refine([X], ["a"], chat=chat, guide=GUIDE, rounds=9)
    assert trace.responses == ("a", "b", "c", "d")
    assert trace.stop_reason is StopReason.CONVERGED
    assert len(chat.calls) == 3 + 4  # three rewrites, four feedbacks


def test_the_best_by_its_own_scores_costs_one_more_feedback():
    chat = scripted()
    (last,) = self_refine([X], ["a"], chat=chat, guide=GUIDE, rounds=2)
    (best,) = self_refine([X], ["a"], chat=scripted(), guide=GUIDE, rounds=2, best=True)
    assert (last.final, best.final) == ("c", "b")  # 1, 7, 3
    assert best.generated_tokens == last.generated_tokens + len("meh score 3")
    assert best.prompt_tokens == last.prompt_tokens + 100
    assert [step.accepted for step in best.rounds] == [True, False]


def test_each_round_holds_what_it_cost():
    (last,) = self_refine([X], ["a"], chat=scripted(), guide=GUIDE, rounds=2)
    assert [step.tokens for step in last.rounds] == [len("bad score 1") + 1, len("good score 7") + 1]
    assert last.generated_tokens == sum(step.tokens for step in last.rounds)
    (best,) = self_refine([X], ["a"], chat=scripted(), guide=GUIDE, rounds=2, best=True)
    # Only its own feedback, which costs too, shows that the first rewrite is better.
    assert [step.tokens for step in best.rounds] == [
        len("bad score 1") + 1 + len("good score 7"),
        1 + len("meh score 3"),
    ]
    assert best.generated_tokens == sum(step.tokens for step in best.rounds)


def test_the_last_feedback_is_paid_though_it_brings_nothing():
    (trace,) = self_refine([X], ["d"], chat=scripted(), guide=GUIDE)
    assert (trace.final, trace.rounds, trace.stop_reason) == ("d", (), StopReason.CONVERGED)
    assert (trace.generated_tokens, trace.prompt_tokens) == (len("fine score 9"), 100)


def test_an_answer_without_a_score_is_never_the_best():
    chat = Together({"a": "bad score 1", "b": "no number"}, {"a": "b"})
    (trace,) = self_refine([X], ["a"], chat=chat, guide=GUIDE, rounds=1, best=True)
    assert trace.final == "a"
    assert trace.gaps == (0.0,)  # no value that JSON lacks


def test_the_feedback_sees_the_last_answer_and_the_rewrite_sees_all_rounds():
    chat = scripted()
    x = Prompt.of([{"role": "system", "content": "s"}, {"role": "user", "content": "x"}])
    self_refine([x], ["a"], chat=chat, guide=GUIDE, rounds=2)
    contents = [[turn["content"] for turn in conversations[0]] for conversations, _, _ in chat.calls]
    asked = "Feedback by:\n- It is short.\n- It is kind."
    assert contents == [
        ["s", "x", "a", asked],
        ["s", "x", "a", asked, "bad score 1", "Better."],
        ["s", "x", "b", asked],
        ["s", "x", "a", asked, "bad score 1", "Better.", "b", asked, "good score 7", "Better."],
    ]
    chat = scripted()
    self_refine([x], ["a"], chat=chat, guide=GUIDE.model_copy(update={"history": False}), rounds=2)
    assert [turn["content"] for turn in chat.calls[-1][0][0]] == ["s", "x", "b", asked, "good score 7", "Better."]


def test_examples_come_first_and_every_conversation_alternates():
    guide = Guide.load()
    chat = scripted()
    x = Prompt.of([{"role": "system", "content": "s"}, {"role": "user", "content": "x"}])
    for turns in (guide.ask(x, "a", "q"), guide.rewrite(x, [("a", "q", "f"), ("b", "q", "g")])):
        assert turns.messages[0].role == "system"  # a Prompt: user and assistant in turn, the user last
        assert turns.messages[1].content == guide.examples[0].prompt
    assert guide.satisfied("All good. Nothing to improve.\nTotal: 10/10")
    for example in guide.examples:
        assert not guide.satisfied(example.feedback)
        assert 0 < guide.score_of(example.feedback) < 5
    assert chat.calls == []


def test_criteria_apart_are_asked_and_mended_one_by_one():
    chat = Chat(
        feedback={
            ("a", "It is short."): "no",
            ("a", "It is kind."): "no",
            ("c", "It is short."): "fine",
            ("c", "It is kind."): "fine",
        },
        rewrites={("a", "It is short."): "b", ("b", "It is kind."): "c"},
    )
    (trace,) = self_refine([X], ["a"], chat=chat, guide=APART, rounds=3)
    assert trace.responses == ("a", "c")
    assert trace.stop_reason is StopReason.CONVERGED
    assert trace.rounds[0].tokens == 2 + 2 + 1 + 1
    assert trace.generated_tokens == 6 + 4 + 4  # and the last feedback
    assert trace.prompt_tokens == 600
    assert trace.gaps == (2.0,)  # criteria that hold: none, then both


def test_only_what_is_complained_about_is_mended():
    chat = Chat({("a", "It is short."): "fine", ("a", "It is kind."): "no"}, {("a", "It is kind."): "b"})
    (trace,) = self_refine([X], ["a"], chat=chat, guide=APART, rounds=1)
    assert trace.final == "b"
    assert len(chat.calls) == 3


def test_an_empty_rubric_asks_for_nothing():
    for guide in (GUIDE, APART):
        (trace,) = self_refine([X], ["a"], chat=scripted(), guide=guide.model_copy(update={"rubric": {}}))
        assert (trace.final, trace.generated_tokens) == ("a", 0)


def test_many_together_are_as_each_alone_and_each_call_has_its_own_seed():
    chat = scripted()
    together = self_refine([X, X, X], ["a", "d", "c"], chat=chat, guide=GUIDE, rounds=2, best=True)
    alone = [self_refine([X], [y], chat=scripted(), guide=GUIDE, rounds=2, best=True)[0] for y in ("a", "d", "c")]
    assert together == alone
    assert len({seed for _, _, seed in chat.calls}) == len(chat.calls)
    assert {temperature for _, temperature, _ in chat.calls} == {0.7}
    assert self_refine([], [], chat=chat, guide=GUIDE) == []


class Flaky(Together):
    """Fails to reply to the calls with these numbers."""

    fails = ()

    def answer(self, prompts, **kwargs):
        replies = super().answer(prompts, **kwargs)
        return [None] * len(replies) if len(self.calls) in self.fails else replies


@pytest.mark.parametrize("fails", [(1,), (2,)])
def test_a_reply_that_failed_is_asked_for_again_and_changes_nothing(fails):
    chat = scripted()
    flaky = Flaky(chat.feedback, chat.rewrites)
    flaky.fails = fails
    (trace,) = self_refine([X], ["a"], chat=flaky, guide=GUIDE, rounds=2)
    assert trace.responses == ("a", "a", "b")
    (whole,) = self_refine([X], ["a"], chat=scripted(), guide=GUIDE, rounds=1)
    assert trace.generated_tokens == whole.generated_tokens + (len("bad score 1") if fails == (2,) else 0)
    assert self_refine([X], ["d"], chat=flaky, guide=GUIDE, rounds=1)[0].stop_reason is StopReason.CONVERGED


def test_an_answer_whose_feedback_failed_is_never_the_best_nor_satisfied():
    chat = scripted()
    flaky = Flaky(chat.feedback, chat.rewrites)
    flaky.fails = (3,)
    (trace,) = self_refine([X], ["a"], chat=flaky, guide=GUIDE, rounds=1, best=True)
    assert (trace.final, trace.stop_reason) == ("a", StopReason.ROUNDS)


def test_the_request_for_a_better_answer_can_repeat_the_prompt():
    chat = Rewriter()
    guide = Guide(rubric={}, feedback=None, refine="Write it anew.\n\nQuestion: {prompt}")
    self_refine([Prompt.of("What is {rubric}?")], ["a"], chat=chat, guide=guide, rounds=1)
    assert chat.asked[0].text == "Write it anew.\n\nQuestion: What is {rubric}?"


@pytest.mark.parametrize("rubric", [GUIDE.rubric, {}])
def test_without_feedback_the_model_writes_a_better_answer_at_once(rubric):
    refine = "Write it anew.\n{rubric}" if rubric else "Write it anew."
    chat = Rewriter()
    guide = Guide(rubric=rubric, feedback=None, refine=refine)
    (trace,) = self_refine([X], ["a"], chat=chat, guide=guide, rounds=2)
    assert trace.responses == ("a", "a!", "a!!")
    assert trace.stop_reason is StopReason.ROUNDS
    assert (trace.generated_tokens, trace.prompt_tokens) == (2 * 5, 2 * 100)
    request = refine.replace("{rubric}", "- It is short.\n- It is kind.")
    assert [turn["content"] for turn in chat.asked[-1].as_messages()] == ["x", "a", request, "a!", request]
    with pytest.raises(InputError, match="best: found a guide with feedback: null"):
        self_refine([X], ["a"], chat=chat, guide=guide, best=True)


class Rewriter:
    """Writes the answer before the request again, with one more exclamation mark."""

    def __init__(self):
        self.asked = []

    def answer(self, prompts, *, temperature, seed):
        self.asked += prompts
        return [Answer(prompt.messages[-2].content + "!", generated_tokens=5, prompt_tokens=100) for prompt in prompts]


def test_any_chat_model_can_refine_itself(bases):
    chat = Policy.of_chat_model(bases("words"), max_new_tokens=4)
    guide = Guide(rubric={"nice": "nice"}, feedback="is it {rubric} ?", refine="better .", done="never said")
    (trace,) = self_refine([Prompt.of("price ?")], ["nine"], chat=chat, guide=guide, rounds=2, best=True)
    assert len(trace.rounds) == 2
    assert 5 <= trace.generated_tokens <= 5 * 4  # three times feedback, two rewrites
    assert trace.prompt_tokens > trace.generated_tokens


class EveryOther(Engine):
    """An engine that answers the first prompt of each call only."""

    pending = 0
    hungry = True

    def __init__(self):
        self.requests = []

    def submit(self, request):
        self.requests.append(request)

    def step(self):
        done, self.requests = self.requests, []
        first, *others = done
        answer = Finished(first.key, Answer("fine score 9", 3, 7))
        return [answer, *(Finished(other.key, None, "500") for other in others)]


@pytest.mark.parametrize(("rounds", "reason", "tokens"), [(1, StopReason.ROUNDS, 0), (2, StopReason.CONVERGED, 3)])
def test_an_engine_can_refine_itself_and_a_failed_reply_is_asked_for_again(rounds, reason, tokens):
    first, second = self_refine([X, X], ["a", "b"], chat=EveryOther(), guide=GUIDE, rounds=rounds)
    assert (first.final, first.stop_reason, first.generated_tokens) == ("a", StopReason.CONVERGED, 3)
    assert (second.final, second.stop_reason, second.generated_tokens) == ("b", reason, tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("feedback: criticise it", "prompts.yaml: key 'feedback': found 'criticise it': expected {rubric} in it"),
        ("done: '('", "prompts.yaml: key 'done': found '(': Input should be a valid regular expression"),
        ("score: total", "prompts.yaml: key 'score': found 'total': expected one group"),
        (
            "examples: [{prompt: x, response: y, feedback: z, refined: w}]\napart: true",
            "prompts.yaml: 'examples' show the whole",
        ),
        ("done: null", "prompts.yaml: found 'feedback' without 'done'"),
        ("feedback: null", "prompts.yaml: found 'done', 'score' or 'examples' beside feedback: null"),
        ("histroy: false", "prompts.yaml: unknown key 'histroy'; did you mean 'history'?"),
        ("examples: [{promt: x}]", "prompts.yaml: unknown key 'examples.0.promt'; did you mean 'prompt'?"),
    ],
)
def test_a_broken_file_of_prompts_is_refused_by_name(tmp_path, change, message):
    key = change.split(":")[0]
    lines = {
        "rubric": "rubric: {a: b}",
        "feedback": "feedback: by {rubric}",
        "refine": "refine: again",
        "done": "done: ok",
    }
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "\n".join(
            {
                **{name: line.replace("by {rubric}", "'by {rubric}'") for name, line in lines.items()},
                key: change,
            }.values()
        )
    )
    with pytest.raises(InputError) as error:
        Guide.load(path)
    assert message in str(error.value).replace(str(tmp_path) + "/", "")


def test_impossible_rounds_are_refused():
    with pytest.raises(InputError, match="rounds: found 0"):
        self_refine([X], ["a"], chat=scripted(), guide=GUIDE, rounds=0)
