"""A batch job with a scripted engine: no item's result depends on the order in which answers arrive."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pitlm.batch.batch_job import BatchJob
from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Answer, Prompt, StopReason
from pitlm.data.items import Failure, Item
from pitlm.engines.engine import Finished
from pitlm.loop.loop import improve_many

SETTINGS = LoopSection(rounds=3, temperature=0.5)


def better(reference: str, seed: int) -> str:
    """The scripted model: it adds one letter, which the seed decides."""
    return reference + "abcde"[seed % 5]


class Script:
    """An engine that holds up to ``places`` requests and finishes some of them, in any order."""

    def __init__(self, places: int = 6, seed: int = 0, fails=lambda request: "") -> None:
        self.places, self.fails = places, fails
        self.random = random.Random(seed)
        self.queue, self.seen, self.most = [], [], 0

    @property
    def pending(self):
        return len(self.queue)

    @property
    def hungry(self):
        return self.pending < self.places

    def submit(self, request):
        if "too long" in request.prompt.text:
            raise InputError("found a conversation of 999 tokens, expected at most 10")
        self.queue.append(request)
        self.seen.append(request)
        self.most = max(self.most, self.pending)

    def step(self):
        self.random.shuffle(self.queue)
        count = self.random.randrange(len(self.queue) + 1)
        ended, self.queue = self.queue[:count], self.queue[count:]
        return [
            Finished(r.key, None if self.fails(r) else Answer(better(r.reference, r.seed), 3, 7), self.fails(r))
            for r in ended
        ]


class Values:
    """The gap grows with the last letter; the scorer gets whole groups."""

    def __init__(self) -> None:
        self.calls = []

    def gaps_apart(self, groups):
        self.calls.append(len(groups))
        return [
            [{"a": -1.0, "b": -0.5}.get(item.response[-1], ord(item.response[-1]) / 100) for item in group]
            for group in groups
        ]


def items(count: int = 40) -> list[Item]:
    return [Item(n, Prompt.of(f"q{n}"), f"<{n}>", {"n": n}, f"in.jsonl:{n + 1}") for n in range(count)]


def run(given, engine=None, settings=SETTINGS, **kwargs):
    """Return what was finished, by number."""
    engine, gap = engine or Script(), kwargs.pop("gap", None) or Values()
    job = BatchJob(iter(given), engine=engine, gap=gap, settings=settings, margin=0.0, seed=5, **kwargs)
    found = {}
    for finished in job:
        for one in finished:
            number = one.number if isinstance(one, Failure) else one[0].number
            assert number not in found  # no item twice
            found[number] = one if isinstance(one, Failure) else one[1]
    assert engine.pending == 0
    return found


def test_every_item_is_finished_once_and_has_a_reason():
    found = run(items())
    assert sorted(found) == list(range(40))
    reasons = {trace.stop_reason for trace in found.values()}
    assert reasons == {StopReason.ACCEPTED_NONE, StopReason.ROUNDS}
    for number, trace in found.items():
        assert trace.original == f"<{number}>"
        assert trace.generated_tokens == 3 * len(trace.rounds)
        assert trace.final.startswith(trace.original)


@pytest.mark.parametrize("proposals", [1, 3])
def test_neither_the_order_nor_the_company_nor_the_places_matter(proposals):
    settings = replace_settings(proposals=proposals)
    alone = {n: run([item], settings=settings)[n] for n, item in enumerate(items(12))}
    for places, seed in ((1, 1), (6, 2), (100, 3)):
        assert run(items(12), Script(places, seed), settings) == alone
    assert run(reversed(items(12)), settings=settings) == alone


def replace_settings(**changes):
    return SETTINGS.model_copy(update=changes)


def test_an_item_goes_through_the_same_loop_as_improve_many():
    """The model ignores its seed, so both ask it the same."""

    class Blind(Script):
        def submit(self, request):
            super().submit(replace(request, seed=len(request.reference)))

    class Proposer:
        def propose(self, prompts, references, *, temperature, seed):
            return [Answer(better(y, len(y)), 3, 7) for y in references]

    class Scorer(Values):
        def gaps(self, asked):
            return [gap for group in self.gaps_apart([[item] for item in asked]) for gap in group]

    given = items()
    expected = improve_many(
        [i.prompt for i in given],
        [i.response for i in given],
        improver=Proposer(),
        gap=Scorer(),
        **SETTINGS.model_dump(),
    )
    assert list(dict(sorted(run(given, Blind()).items())).values()) == expected


def test_each_answer_has_its_own_seed_and_the_loops_temperature():
    engine = Script()
    run(items(), engine, replace_settings(proposals=2))
    assert len({request.seed for request in engine.seen}) == len(engine.seen)
    assert {request.temperature for request in engine.seen} == {0.5}


def test_items_are_read_no_further_ahead_than_the_engine_wants():
    engine, read, finished = Script(places=4), [0], 0

    def stream():
        for item in items(2000):
            read[0] += 1
            yield item

    gap = Values()
    for done in BatchJob(stream(), engine=engine, gap=gap, settings=SETTINGS, margin=0.0, seed=0):
        finished += len(done)
        assert read[0] - finished <= 4 + 2 * 64 + 64  # the engine's places, rounds that wait for gaps, new requests
    assert finished == 2000
    assert sum(gap.calls) / len(gap.calls) > 32  # the scorer gets gaps in groups


def test_what_fails_is_set_aside_and_the_others_go_on():
    given: list = items(10)
    given[3] = Failure(3, "in.jsonl:4", "found broken JSON", "{")
    given[5] = replace(given[5], prompt=Prompt.of("too long"))
    fails = lambda request: "the server said no" if request.prompt.text == "q7" else ""  # noqa: E731
    found = run(given, Script(fails=fails), replace_settings(proposals=2))
    assert {n: one.reason for n, one in found.items() if isinstance(one, Failure)} == {
        3: "found broken JSON",
        5: "found a conversation of 999 tokens, expected at most 10",
        7: "the server said no",
    }
    assert found[5].row == {"n": 5}
    assert {n: one for n, one in found.items() if not isinstance(one, Failure)} == {
        n: one for n, one in run(items(10), settings=replace_settings(proposals=2)).items() if n not in (3, 5, 7)
    }


def test_a_missing_response_is_answered_first_and_only_then_is_the_answerer_made():
    made = []

    class First(Script):
        def step(self):
            ended = super().step()
            return [replace(one, answer=Answer(f"first to {one.key[0]}")) for one in ended]

    def make():
        made.append(First())
        return made[-1]

    run(items(5), make_answerer=make)
    assert made == []
    given = [replace(item, response=None) if item.number % 2 else item for item in items(9)]
    found = run(given, make_answerer=make, answer_temperature=0.9)
    assert len(made) == 1
    assert [found[n].original for n in range(4)] == ["<0>", "first to 1", "<2>", "first to 3"]
    assert {request.temperature for request in made[0].seen} == {0.9}
    without = run(given)
    assert "found no response" in without[1].reason
    assert not isinstance(without[0], Failure)


def test_a_margin_without_bound_asks_for_nothing():
    engine = Script()
    job = BatchJob(iter(items(3)), engine=engine, gap=Values(), settings=SETTINGS, margin=float("inf"), seed=0)
    finished = [one for done in job for one in done]
    assert [trace.stop_reason for _, trace in finished] == [StopReason.ACCEPTED_NONE] * 3
    assert engine.seen == []


def test_nothing_is_finished_at_once():
    assert run([]) == {}


def test_an_engine_that_is_dead_stops_the_job():
    class Dead(Script):
        def step(self):
            raise InputError("http://localhost:1: found no server there")

    with pytest.raises(InputError, match="found no server"):
        run(items(3), Dead())
