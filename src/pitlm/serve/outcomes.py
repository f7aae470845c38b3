"""The outcome of each answer: a field and headers for its client, and figures for Prometheus."""

import json
import math
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from pitlm.io.visible import one_line
from pitlm.loop.live_loop import LiveOutcome

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
GAPS = (-4, -2, -1, -0.5, 0, 0.5, 1, 2, 4)


def finite(value: float) -> float | None:
    """The number, or None (JSON's null) for a number that JSON does not have."""
    return value if math.isfinite(value) else None


def _usage(outcome: LiveOutcome) -> dict[str, int]:
    """The improver's tokens."""
    return {"prompt_tokens": outcome.trace.prompt_tokens, "completion_tokens": outcome.trace.generated_tokens}


def whole_usage(outcome: LiveOutcome, upstream: dict[str, Any]) -> dict[str, Any]:
    """The upstream's usage with the improver's tokens added; a count that is no number is left out of the sum."""
    spent = {**_usage(outcome), "total_tokens": sum(_usage(outcome).values())}
    counted = {name: upstream[name] for name in spent if isinstance(upstream.get(name), int)}
    return {**upstream, **{name: counted.get(name, 0) + tokens for name, tokens in spent.items()}}


def pit_field(outcome: LiveOutcome, upstream: Any, *, original: bool) -> dict[str, Any]:
    """The ``pit`` field of a response: outcome, rounds, gaps, stop reason, and the tokens of upstream and improver."""
    fields = {
        "outcome": outcome.name,
        "rounds": len(outcome.trace.rounds),
        "gaps": list(map(finite, outcome.trace.gaps)),
        "stop_reason": str(outcome.trace.stop_reason),
        "failure": outcome.failure or None,
        "usage": {"upstream": upstream, "improver": _usage(outcome)},
    }
    return {**fields, "original": outcome.trace.original} if original else fields


def header_text(text: str) -> bytes:
    """A text of a client or a server as the value of a header."""
    return one_line(text).encode("ascii", "replace")


def pit_headers(outcome: LiveOutcome) -> list[tuple[bytes, bytes]]:
    """The ``pit`` field as headers, for clients whose library hides unknown fields."""
    fields = pit_field(outcome, None, original=False)
    headers = [(b"x-pit", outcome.name.encode()), (b"x-pit-gaps", json.dumps(fields["gaps"]).encode())]
    for name in ("rounds", "stop_reason", "failure"):
        if fields[name] is not None:
            headers.append((f"x-pit-{name.replace('_', '-')}".encode(), header_text(str(fields[name]))))
    return headers


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self.requests = counter("pit_requests", "Chat completions by outcome.", ["outcome", "reason"])
        self.responses = counter("pit_responses", "Responses sent by status.", ["status"])
        self.added = histogram("pit_added_seconds", "Time from the upstream's answer to ours.", buckets=SECONDS)
        self.rounds = histogram("pit_rounds", "Rounds of each loop.", buckets=range(1, 9))
        self.gaps = histogram("pit_gap", "Calibrated gap of each proposal.", buckets=GAPS)
        self.stops = counter("pit_stops", "Loops by why they stopped.", ["reason"])
        self.batch = histogram("pit_batch_size", "Jobs done together by the models.", buckets=(1, 2, 4, 8, 16, 32, 64))
        self.inside = Gauge("pit_requests_inside", "Requests worked on or waiting for their turn.", registry=registry)

    def observe(self, outcome: LiveOutcome) -> None:
        """Count one chat completion that went through the loop, and its rounds and gaps."""
        trace = outcome.trace
        self.requests.labels(outcome.name, outcome.failure).inc()
        self.rounds.observe(len(trace.rounds))
        self.stops.labels(str(trace.stop_reason)).inc()
        for gap in trace.gaps:
            if gap == gap:  # a proposal that was not scored has no gap
                self.gaps.observe(gap)

    def text(self) -> bytes:
        """The figures in the text format of Prometheus."""
        return generate_latest(self._registry)
