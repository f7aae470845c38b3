"""The order of rows: fixed by the seed, every row once an epoch, rows of similar length together."""

from __future__ import annotations

import random

import pytest

from pitlm.method.batches import length_grouped

RNG = random.Random(0)
LENGTHS = [RNG.randrange(5, 500) for _ in range(1_003)]


def test_every_row_comes_once_an_epoch_and_the_seed_decides():
    order = length_grouped(LENGTHS, batch_size=16, epochs=2.5, seed=1)
    rows = list(range(len(LENGTHS)))
    assert [sorted(order[:1003]), sorted(order[1003:2006])] == [rows, rows]
    assert len(order) == round(2.5 * 1003)
    assert order == length_grouped(LENGTHS, batch_size=16, epochs=2.5, seed=1)
    assert order[:1003] != order[1003:2006]
    assert order != length_grouped(LENGTHS, batch_size=16, epochs=2.5, seed=2)


def test_padding_is_a_small_share_of_what_random_batches_have():
    def padding(order):
        batches = [[LENGTHS[i] for i in order[at : at + 16]] for at in range(0, len(order), 16)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert padding(length_grouped(LENGTHS, batch_size=16, epochs=1, seed=0)) < 0.2 * padding(range(len(LENGTHS)))


@pytest.mark.parametrize("epochs", [0.0001, 0.01])
def test_a_sliver_of_an_epoch_is_one_row_at_least(epochs):
    assert len(length_grouped([3, 4, 5], batch_size=2, epochs=epochs, seed=0)) == 1
