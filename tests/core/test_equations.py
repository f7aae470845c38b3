"""The paper's equations against hand arithmetic, brute force and invariances."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from pitlm.core.equations import RELATIONS, calibrated_gap, gap_differences, gap_loss
from pitlm.core.training_sections import Relation


def softplus(x: float) -> float:
    """-log sigmoid(-x), written out."""
    return math.log(1.0 + math.exp(x))


def columns(*rows: tuple[float, float, float, float]) -> list[torch.Tensor]:
    """Turn rows of (wl, ww, ll, lw) into one tensor for each score."""
    return [torch.tensor(column, requires_grad=True) for column in zip(*rows, strict=True)]


def test_eq_2_by_hand_for_one_triple():
    # wl 2, ww 1, ll 0, lw -1: the five differences are 1, 2, 3, 2, 1.
    expected = 2 * softplus(-1.0) + 2 * softplus(-2.0) + softplus(-3.0)
    assert expected == pytest.approx(0.626523 + 0.253856 + 0.048587, abs=1e-5)
    assert gap_loss(*columns((2.0, 1.0, 0.0, -1.0))).item() == pytest.approx(expected, rel=1e-6)


def test_differences_come_in_the_order_of_their_names():
    scores = {"wl": 2.0, "ww": 0.7, "ll": 0.1, "lw": -1.3}
    rows = gap_differences(*(torch.tensor([scores[name]]) for name in ("wl", "ww", "ll", "lw")))
    expected = [scores[a] - scores[b] for a, b in (name.split(">") for name in RELATIONS)]
    assert rows.squeeze(1).tolist() == pytest.approx(expected)


def test_scores_that_say_nothing_cost_five_ln_2():
    assert gap_loss(*columns(*[(0.0, 0.0, 0.0, 0.0)] * 3)).item() == pytest.approx(5 * math.log(2), rel=1e-6)


def test_only_differences_count():
    scores = columns((2.0, 1.0, 0.0, -1.0), (0.3, -0.2, 0.5, 0.1))
    assert gap_loss(*(score + 7.5 for score in scores)).item() == pytest.approx(gap_loss(*scores).item(), rel=1e-5)


def test_the_batch_is_averaged():
    rows = [(2.0, 1.0, 0.0, -1.0), (0.3, -0.2, 0.5, 0.1), (-1.0, 0.0, 0.0, 4.0)]
    alone = [gap_loss(*columns(row)).item() for row in rows]
    assert gap_loss(*columns(*rows)).item() == pytest.approx(sum(alone) / 3, rel=1e-6)


def test_descending_raises_the_better_order_and_lowers_the_worse():
    scores = columns((0.0, 0.0, 0.0, 0.0))
    gap_loss(*scores).backward()
    wl, ww, ll, lw = (float(score.grad) for score in scores)
    # Each difference at 0 has slope -1/2. wl is on the plus side of three, lw on the minus side of three, ww and ll
    # on each once.
    assert (wl, ww, ll, lw) == pytest.approx((-1.5, 0.0, 0.0, 1.5))


def test_gradient_matches_finite_differences():
    scores = [
        score.double().detach().requires_grad_() for score in columns((0.4, -0.3, 0.2, 0.9), (1.0, 0.0, 0.5, -2.0))
    ]
    gap_loss(*scores).backward()
    for position, score in enumerate(scores):
        for row in range(2):
            values = []
            for step in (0.01, -0.01):
                moved = [other.detach().clone() for other in scores]
                moved[position][row] += step
                values.append(gap_loss(*moved).item())
            assert (values[0] - values[1]) / 0.02 == pytest.approx(score.grad[row].item(), abs=2e-4)


def test_the_loss_is_float32_for_bfloat16_scores():
    loss = gap_loss(*(score.bfloat16() for score in columns((200.0, 0.5, 0.0, -1.0))))
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())


def test_calibrated_gap_is_zero_where_nothing_changed():
    raw = torch.tensor([0.3, -1.7])
    assert calibrated_gap(raw, raw).tolist() == [0.0, 0.0]
    assert calibrated_gap(torch.tensor([1.0]), torch.tensor([0.25])).item() == 0.75


def test_an_ablation_counts_the_named_terms_alone():
    """By hand: wl - ll is 2 and wl - lw is 3."""
    scores = columns((2.0, 1.0, 0.0, -1.0))
    assert gap_loss(*scores, terms=["wl>ll", "wl>lw"]).item() == pytest.approx(
        softplus(-2.0) + softplus(-3.0), rel=1e-6
    )
    assert gap_loss(*scores, terms=RELATIONS).item() == gap_loss(*scores).item()


def test_a_recipe_names_the_terms_as_the_equation_does():
    assert get_args(Relation) == RELATIONS
