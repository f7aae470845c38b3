"""What Prometheus reads at ``/metrics``."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from pitlm.serve.live_loop import LiveOutcome

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
GAPS = (-4, -2, -1, -0.5, 0, 0.5, 1, 2, 4)


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
        """Count one chat completion that was improved, or could have been."""
        trace = outcome.trace
        self.requests.labels(outcome.name, outcome.failure).inc()
        self.rounds.observe(len(trace.rounds))
        self.stops.labels(str(trace.stop_reason)).inc()
        for gap in trace.gaps:
            if gap == gap:  # a proposal that was not scored has no gap
                self.gaps.observe(gap)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
