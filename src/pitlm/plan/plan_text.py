"""A plan as the lines that a person reads."""

from __future__ import annotations

from collections.abc import Iterator

from pitlm.plan.costs import Workload
from pitlm.plan.hardware import Hardware
from pitlm.plan.plan import Plan
from pitlm.plan.shapes import Shape


def plan_lines(plan: Plan, shape: Shape, work: Workload, where: str, *, every: bool) -> Iterator[str]:
    """What was planned for and what it takes; with ``every``, in each stage. ``where`` the lengths are from."""
    hardware = plan.hardware
    lengths = f"x {work.prompt:.0f}, chosen {work.chosen:.0f}, rejected {work.rejected:.0f} tokens"
    yield f"data        {work.pairs:,} pairs; {lengths} ({where})"
    yield f"model       {shape.parameters / 1e6:,.1f} million parameters"
    yield _hardware(hardware)
    if every:
        yield f"{'stage':14}{'trained':>11}{'written':>11}{'FLOP':>10}{'time':>10}{'memory':>10}"
        for stage in plan.stages:
            counts = f"{stage.trained:11,.0f}{stage.generated:11,.0f}{stage.flops:10.1e}"
            yield f"{stage.name:14}{counts}{_time(stage.seconds):>10}{_bytes(stage.peak):>10}"
    room = f"of {_bytes(hardware.memory)}: {'fits' if plan.fits else 'DOES NOT FIT'}"
    yield f"memory      {_bytes(plan.peak)} at most (in {plan.largest.name}) {room}"
    cost = "" if plan.cost is None else f", {plan.cost:,.2f} at {hardware.price:g} an hour"
    yield f"time        {_time(plan.seconds)}{cost}"


def _hardware(hardware: Hardware) -> str:
    known = "measured just now" if hardware.measured else "ASSUMED from its data sheet, not measured"
    rates = f"{hardware.train_flops / 1e9:,.0f} GFLOP/s in training, {hardware.forward_flops / 1e9:,.0f} reading"
    more = f"{hardware.bandwidth / 1e9:,.0f} GB/s, {1000 * hardware.step_seconds:.1f} ms a step"
    return f"hardware    {hardware.devices} x {hardware.name}, {known}: {rates}, {more}"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
