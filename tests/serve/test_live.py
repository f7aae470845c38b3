"""Improving while a client waits: the kept answer, the cost of failures, and the process that owns the models."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from scripted_models import Judge, Writer, bare, both, killed, missing
from scripted_upstream import served

from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt, StopReason
from pitlm.core.recipe import LoopSection
from pitlm.serve.live_loop import Bounds, Improving, Unavailable
from pitlm.serve.remote import RemoteImprover, RemoteScorer
from pitlm.serve.worker import Worker

X = Prompt.of("2 + 2 ?")
NONE = Bounds()


def drive(writer=None, judge=None, bounds=NONE, *, seconds=20.0, **settings):
    improving = Improving(writer or Writer(), judge or Judge(), LoopSection(**settings), seconds)
    return asyncio.run(improving(X, "Four .", bounds))


def test_rounds_go_on_while_the_gap_is_above_the_margin_that_the_scorer_was_calibrated_to():
    outcome = drive(rounds=5)
    assert outcome.trace.responses == ("Four .", "Four . Better", "Four . Better Better")
    assert outcome.trace.gaps == (1.0, 1.0, -1.0)
    assert (outcome.name, outcome.failure, outcome.trace.generated_tokens) == ("improved", "", 9)
    assert drive(judge=Judge(calibrated=1.0)).name == "kept"
    assert drive(judge=Judge(calibrated=1.0), margin=0.9).name == "improved"


def test_a_margin_of_infinity_asks_for_nothing():
    writer = Writer()
    outcome = drive(writer, Judge(calibrated=math.inf))
    assert (outcome.name, outcome.trace.rounds, writer.asked) == ("kept", (), [])


@pytest.mark.parametrize(
    ("writer", "judge"),
    [
        (Writer(failure="the improver is gone"), Judge()),
        (Writer(), Judge(failure="the gap model is gone")),
    ],
)
def test_a_model_that_fails_leaves_the_first_answer(writer, judge):
    outcome = drive(writer, judge)
    assert (outcome.name, outcome.trace.final, outcome.trace.stop_reason) == (
        "failed-open",
        "Four .",
        StopReason.CANCELLED,
    )
    assert "is gone" in outcome.failure


def test_so_does_whatever_else_goes_wrong():
    class Broken(Judge):
        async def gap(self, item):
            return None  # NaN is no gap

    outcome = drive(judge=Broken())
    assert (outcome.name, outcome.trace.final, outcome.failure) == (
        "failed-open",
        "Four .",
        "internal error (TypeError)",
    )


def test_a_model_that_is_slow_leaves_the_first_answer():
    outcome = drive(Writer(seconds=30), seconds=0.05)
    assert (outcome.name, outcome.trace.final) == ("failed-open", "Four .")
    assert (outcome.failure, outcome.trace.stop_reason) == ("time limit", StopReason.SECONDS)


def test_a_round_that_has_ended_stands_when_the_next_one_fails():
    class Once(Writer):
        async def propose(self, *args, **kwargs):
            self.failure = "the improver is gone" if self.asked else ""
            return await super().propose(*args, **kwargs)

    outcome = drive(Once(), rounds=3)
    assert (outcome.name, outcome.trace.final) == ("improved", "Four . Better")
    assert outcome.failure == "the improver is gone"


def test_bounds_of_the_first_answer_hold_for_the_improved_one():
    writer = Writer(suffix=" Better END and more")
    outcome = drive(writer, bounds=Bounds(stop=("XX", "END"), temperature=0.1, seed=7, rounds=2), rounds=3)
    assert outcome.trace.responses[1] == "Four . Better"
    assert [(asked["temperature"], asked["seed"]) for asked in writer.asked] == [(0.1, 7), (0.1, 8)]
    assert outcome.trace.stop_reason is StopReason.ROUNDS
    hot = Writer()
    drive(hot, bounds=Bounds(temperature=1.5, rounds=9), rounds=1)
    assert [asked["temperature"] for asked in hot.asked] == [0.4]


def test_a_proposal_longer_than_the_client_allows_is_not_even_scored():
    outcome = drive(Writer(tokens=6), bounds=Bounds(max_tokens=5))
    assert outcome.name == "kept"
    assert math.isnan(outcome.trace.gaps[0])
    assert drive(Writer(tokens=5), bounds=Bounds(max_tokens=5)).name == "improved"


def test_a_proposal_of_which_nothing_is_left_before_the_stop_sequence_is_none():
    assert drive(bounds=Bounds(stop=("Four",))).trace.stop_reason is StopReason.CONVERGED


def test_of_several_proposals_each_has_a_seed_of_its_own():
    writer = Writer()
    drive(writer, bounds=Bounds(seed=10), rounds=2, proposals=3)
    assert [asked["seed"] for asked in writer.asked] == [10, 11, 12, 13, 14, 15]


def work(test, load=both, **settings):
    """Run a coroutine function with a worker."""

    async def main():
        sizes = []
        worker = Worker(load, observe=sizes.append, **{"patience": 20.0, **settings})
        await worker.start()
        try:
            return await asyncio.wait_for(test(worker, sizes), 30)
        finally:
            await worker.stop()

    return asyncio.run(main())


def ask(worker, text, seed=None, temperature=0.4):
    return worker.propose(Prompt.of(text), "y", temperature=temperature, seed=seed, max_tokens=None)


def test_what_is_asked_at_once_is_done_together_and_each_gets_its_own():
    async def test(worker, sizes):
        answers = await asyncio.gather(*(ask(worker, name) for name in "abcde"))
        assert [answer.text[:8] for answer in answers] == [f"{name} with 5"[:8] for name in "abcde"]
        assert (await ask(worker, "f")).prompt_tokens == 3
        gaps = await asyncio.gather(*(worker.gap(Improvement(X, "abc", "z" * size)) for size in range(4)))
        assert gaps == [-3.0, -2.0, -1.0, 0.0]
        assert await worker.margin() == 0.25
        assert sizes == [5, 1, 4]

    work(test)


def test_a_seed_is_asked_alone_so_that_it_gives_the_same_answer_in_any_company():
    async def test(worker, sizes):
        answers = await asyncio.gather(
            *(ask(worker, "a", seed) for seed in (3, 3, None, None)), ask(worker, "a", temperature=0.0)
        )
        texts = [answer.text for answer in answers]
        assert texts[:2] == ["a with 1 at 0.4 seed 3"] * 2
        assert texts[2] == texts[3] == texts[2].replace("with 1", "with 2")
        assert texts[4].startswith("a with 1 at 0.0")

    work(test)


def test_a_batch_is_no_larger_than_allowed():
    async def test(worker, sizes):
        await asyncio.gather(*(ask(worker, str(number)) for number in range(7)))
        assert sizes == [3, 3, 1]

    work(test, largest=3)


def test_one_that_fails_fails_alone_and_its_words_are_not_repeated():
    async def test(worker, sizes):
        good, bad, fine = await asyncio.gather(
            ask(worker, "a"), ask(worker, "fail"), ask(worker, "b"), return_exceptions=True
        )
        assert (good.text[0], fine.text[0]) == ("a", "b")
        assert isinstance(bad, Unavailable)
        assert str(bad) == "MemoryError in the improver"

    work(test)


@pytest.mark.parametrize(("text", "why"), [("die", "died"), ("hang", "hung")])
def test_a_process_that_dies_or_hangs_is_replaced_and_refuses_meanwhile(text, why):
    async def test(worker, sizes):
        with pytest.raises(Unavailable, match=why):
            await ask(worker, text)
        with pytest.raises(Unavailable, match="started again"):
            await ask(worker, "a")
        while not worker.ready:
            await asyncio.sleep(0.01)
        assert (await ask(worker, "a")).text.startswith("a with 1")

    work(test, patience=4)


def test_a_job_that_nobody_waits_for_is_not_begun():
    async def test(worker, sizes):
        first = asyncio.ensure_future(ask(worker, "a", seed=1))
        second = asyncio.ensure_future(ask(worker, "b", seed=2))
        await asyncio.sleep(0)
        second.cancel()
        assert (await first).text.startswith("a")
        await worker.gap(Improvement(X, "a", "b"))
        assert sizes == [1, 1]

    work(test)


@pytest.mark.parametrize(
    ("load", "message"),
    [(missing, "nowhere: found no such folder"), (killed, "their process ended"), (bare, "torch is not installed")],
)
def test_models_that_cannot_be_loaded_say_so_at_the_start(load, message):
    with pytest.raises(InputError, match=message):
        work(None, load=load)


def test_the_loops_own_budget_of_seconds_is_within_the_time_limit():
    """So the loop begins no round that the limit would break off."""
    assert [NONE.settings(LoopSection(seconds=own), 20.0).seconds for own in (None, 5.0, 60.0)] == [20.0, 5.0, 20.0]


def remotely(use, kind, *replies, **settings):
    """Run a coroutine function with a remote model; its server gives these replies in turn."""
    asked, left = [], list(replies)

    async def server(scope, receive, send):
        body = (await receive())["body"]
        asked.append((scope["method"], scope["path"], json.loads(body or b"null"), dict(scope["headers"])))
        status, content = left.pop(0)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content.encode()})

    async def main(url):
        remote = kind(f"{url}/v1", **settings)
        try:
            return await use(remote)
        finally:
            await remote.close()

    with served(server) as url:
        return asyncio.run(main(url)), asked


def proposed(content="Four, sir .", end="stop", usage=True):
    message = {"choices": [{"message": {"content": content}, "finish_reason": end}]}
    return 200, json.dumps(message | ({"usage": {"completion_tokens": 4, "prompt_tokens": 20}} if usage else {}))


def propose(max_tokens=None, seed=None):
    return lambda remote: remote.propose(X, "Four .", temperature=0.4, seed=seed, max_tokens=max_tokens)


def test_a_remote_improver_is_asked_as_it_was_trained():
    settings = {"model": "mine", "ask": "Do better.", "key": "sk"}
    answer, asked = remotely(propose(9, 3), RemoteImprover, proposed(), **settings)
    assert (answer.text, answer.generated_tokens, answer.prompt_tokens) == ("Four, sir .", 4, 20)
    method, path, body, headers = asked[0]
    assert (method, path, headers[b"authorization"]) == ("POST", "/v1/chat/completions", b"Bearer sk")
    turns = [("user", "2 + 2 ?"), ("assistant", "Four ."), ("user", "Do better.")]
    assert body == {
        "model": "mine",
        "messages": [{"role": role, "content": content} for role, content in turns],
        "temperature": 0.4,
        "seed": 3,
        "max_tokens": 10,
    }


def test_a_remote_proposal_that_was_cut_off_counts_as_too_long():
    answer, _ = remotely(propose(9), RemoteImprover, proposed(end="length", usage=False), model="m", ask="a")
    assert answer.generated_tokens > 9


@pytest.mark.parametrize("reply", [(503, "{}"), (200, "nonsense"), (200, "[]"), (200, '{"choices": []}')])
def test_a_remote_improver_that_makes_no_sense_is_unavailable(reply):
    with pytest.raises(Unavailable, match="improver"):
        remotely(propose(), RemoteImprover, reply, model="m", ask="a")


def test_a_remote_gap_model_is_another_pit_serve():
    async def use(remote):
        gaps = [await remote.gap(Improvement(X, "a", "b")) for _ in range(2)]
        return gaps, await remote.margin(), await remote.margin()

    replies = (200, '{"gap": -1.5}'), (200, '{"gap": null}'), (200, '{"margin": null}')
    ((first, second), *margins), asked = remotely(use, RemoteScorer, *replies)
    assert first == -1.5
    assert math.isnan(second)
    assert margins == [math.inf, math.inf]
    assert asked[0][:2] == ("POST", "/v1/score")
    assert asked[0][2] == {"prompt": [{"role": "user", "content": "2 + 2 ?"}], "reference": "a", "response": "b"}
    assert [row[0] for row in asked] == ["POST", "POST", "GET"]


def test_a_remote_gap_model_that_makes_no_sense_is_unavailable():
    for reply in ((200, '{"gap": "high"}'), (200, "[]"), (404, "{}")):
        with pytest.raises(Unavailable, match="gap model"):
            remotely(lambda remote: remote.gap(Improvement(X, "a", "b")), RemoteScorer, reply)
