"""Baselines that rewrite: the SFT-only improver, and PIT with another scorer or without its stop rule."""

from __future__ import annotations

from pitlm.loop.baselines.baseline import PIT, PIT_ONE, SFT, Baseline, Work
from pitlm.loop.chains import first_rounds

SFT_ONCE = Baseline(
    SFT,
    lambda systems: [first_rounds(trace, 1) for trace in systems.chains[SFT]],
)
SFT_LOOP = Baseline(
    f"{SFT} + loop",
    lambda systems: systems.improved(f"{SFT} + loop", systems.models.corrector, systems.models.gap),
    work=lambda rounds, samples: Work(proposals=rounds, gaps=rounds),
)
REWARD_DIFFERENCE = Baseline(
    "PIT with R_P difference",
    lambda systems: systems.improved("PIT with R_P difference", systems.models.improver, systems.reward_difference),
    work=lambda rounds, samples: Work(proposals=rounds, rewards=2 * rounds),
)
ONE_ROUND = Baseline(
    PIT_ONE,
    lambda systems: [first_rounds(trace, 1) for trace in systems.chains[PIT]],
)
