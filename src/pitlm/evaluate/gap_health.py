"""How far R_PIT can be trusted: figures after Eq. 1, which the stage that trains R_PIT reports. Not in the paper."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import pearsonr

from pitlm.core.equations import RELATIONS, gap_differences
from pitlm.core.nouns import Improvement, Preference
from pitlm.core.verdicts import Comparison, Verdict
from pitlm.evaluate.floor import floor_scores
from pitlm.evaluate.statistics import mean_interval, share
from pitlm.judge.protocol import Judge
from pitlm.models.scorers import GapModel, RewardModel


def gap_health(
    gap: GapModel,
    reward: RewardModel,
    train: Sequence[Preference],
    held_out: Sequence[Preference],
    fresh: Sequence[Comparison],
    truth: Judge,
) -> dict[str, Any]:
    """How far one gap model can be trusted, as plain values.

    Args:
        train: the pairs that both models were trained on; the bag of words learns from them, too.
        held_out: pairs that no model was trained on.
        fresh: pairs of the policy's own answers to held-out prompts.
        truth: the judge that fresh pairs are checked against; pairs that it does not decide are left out.
    """
    pairs = [(p.prompt, p.chosen, p.rejected) for p in held_out]
    four = [(x, reference, y) for x, w, l in pairs for y, reference in ((w, l), (w, w), (l, l), (l, w))]
    wl, ww, ll, lw = gap.raw([Improvement(*row) for row in four]).view(-1, 4).T
    right = (gap_differences(wl, ww, ll, lw) > 0).numpy()
    prompts = [x for x, _, _ in pairs]
    rewards = reward.scores(prompts, [w for _, w, _ in pairs]) - reward.scores(prompts, [l for _, _, l in pairs])
    floor = floor_scores(train, held_out)
    longer = np.array([len(w.split()) - len(l.split()) for _, w, l in pairs])
    forward, backward = (wl - ll).numpy(), (lw - ww).numpy()
    lengths = np.concatenate([longer, -longer])
    gaps = np.concatenate([forward, backward])
    verdicts = [row.verdict for row in truth.judge(fresh)]
    signs = (gap.gaps([Improvement(pair.prompt, pair.second, pair.first) for pair in fresh]) > 0).tolist()
    labels = {Verdict.WIN: True, Verdict.LOSS: False}
    fresh_right = [sign is labels[v] for v, sign in zip(verdicts, signs, strict=True) if v in labels]
    return {
        "order": {name: share(right[index]) for index, name in enumerate(RELATIONS)},
        "held_out_pairs": share(forward > backward),
        "held_out_pairs_reward": share((rewards > 0).numpy()),
        "held_out_pairs_floor": share(floor > 0),
        "above_floor": {
            name: asdict(mean_interval(np.subtract(right, floor > 0, dtype=float)))
            for name, right in (("R_P", (rewards > 0).numpy()), ("R_PIT", forward > backward))
        },
        "held_out_pairs_longer": share(longer[longer != 0] > 0),
        "fresh_pairs": share(fresh_right),
        "antisymmetry": _correlation(forward, backward),
        "equal_spread": float(np.std(np.concatenate([ww.numpy(), ll.numpy()]))),
        "gap_spread": float(np.std(gaps)),
        "length_correlation": _correlation(gaps, lengths),
    }


def _correlation(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Pearson's r, NaN if one side does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(pearsonr(a, b).statistic)
