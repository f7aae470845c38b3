"""The process that holds the models: many requests at once, seeds, failures, and what happens when it dies."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from builders import generator_checkpoint
from scripted_models import bare, both, inexact, killed, missing

from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.loop.live_loop import ProposalRequest, Unavailable
from pitlm.serve.model_process import load_models
from pitlm.serve.settings import Settings
from pitlm.serve.worker import Worker

X = Prompt.of("2 + 2 ?")


def work(test, load=both, seconds=30, **settings):
    """Run a coroutine function with a worker."""

    async def main():
        sizes = []
        worker = Worker(load, Settings(**{"improve_seconds": 10.0, **settings}), sizes.append)
        await worker.start()
        try:
            return await asyncio.wait_for(test(worker, sizes), seconds)
        finally:
            await worker.aclose()

    return asyncio.run(main())


def ask(worker, text, seed=None, temperature=0.4):
    return worker.propose(ProposalRequest(Prompt.of(text), "y", temperature, seed))


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


def test_each_request_brings_its_own_seed_and_temperature():
    async def test(worker, sizes):
        answers = await asyncio.gather(
            *(ask(worker, "a", seed) for seed in (3, 3, 2**31 + 5, None, None)), ask(worker, "a", temperature=0.0)
        )
        texts = [answer.text for answer in answers]
        assert texts[:3] == ["a with 6 at 0.4 seed 3", "a with 6 at 0.4 seed 3", "a with 6 at 0.4 seed 5"]
        assert texts[3] != texts[4]  # without a seed, each its own
        assert texts[5].startswith("a with 6 at 0.0")

    work(test)


def test_the_same_seed_gives_the_same_answer_in_any_company(bases, tmp_path):
    """A real improver in the process: alone, and beside requests of other lengths, temperatures and seeds."""
    folder = generator_checkpoint(bases("words"), tmp_path / "improver", "improver")

    async def test(worker, sizes):
        alone = [await ask(worker, "what is the price ?", seed, 2.0) for seed in range(4)]
        others = [ask(worker, "price ? " * n, None, n / 2) for n in range(1, 9)]
        together = await asyncio.gather(*others, *(ask(worker, "what is the price ?", seed, 2.0) for seed in range(4)))
        assert together[8:] == alone
        assert len({answer.text for answer in alone}) == 4
        assert max(sizes) == 12

    work(test, partial(load_models, Settings(improver=str(folder))), improve_seconds=60.0, seconds=240)


def test_a_request_with_a_seed_is_written_alone_where_neighbours_could_change_it():
    async def test(worker, sizes):
        asked = [ask(worker, "a"), ask(worker, "b"), *(ask(worker, "c", 3) for _ in range(2)), ask(worker, "d")]
        texts = [answer.text for answer in await asyncio.gather(*asked, ask(worker, "e"))]
        assert [text[:8] for text in texts] == ["a with 2", "b with 2", "c with 1", "c with 1", "d with 2", "e with 2"]
        assert sizes == [2, 1, 1, 2]

    work(test, inexact)


def test_a_request_that_can_never_be_answered_spoils_no_other():
    async def test(worker, sizes):
        good, bad = await asyncio.gather(ask(worker, "a"), ask(worker, "too long"), return_exceptions=True)
        assert good.text.startswith("a with 1")
        assert isinstance(bad, InputError)
        assert str(bad) == "found a conversation of 99 tokens, expected at most 9"

    work(test)


def test_a_batch_is_no_larger_than_allowed():
    async def test(worker, sizes):
        await asyncio.gather(*(ask(worker, str(number)) for number in range(7)))
        assert sizes == [3, 3, 1]

    work(test, batch=3)


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

    work(test, improve_seconds=0.75)


def test_a_request_that_nobody_waits_for_is_not_begun():
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
