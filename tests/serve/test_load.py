"""A small load test; `make bench` runs it with 64 clients and 5,000 requests."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serve.py"


def test_with_an_upstream_that_misbehaves_nothing_is_lost_doubled_or_blamed_on_it(tmp_path):
    out = tmp_path / "deep" / "serve.json"
    # Many clients, because a client waits eight seconds for each reply that never comes.
    command = [sys.executable, BENCHMARK, "--clients", "40", "--requests", "200", "--patience", "8", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    promised = {name: figures[name] for name in ("requests", "lost", "doubled", "foreign_5xx", "unseen")}
    assert promised == {"requests": 200, "lost": 0, "doubled": 0, "foreign_5xx": 0, "unseen": 0}
    # Failures of the upstream are passed on as such.
    assert {"well 200", "fail 503", "stall 504", "cut 502", "cut 200", "nonsense 200"} == figures["outcomes"].keys()
    assert {
        "latency_added_p50_ms",
        "latency_added_p99_ms",
        "requests_per_s_proxied",
        "memory_growth_mib",
    } <= figures.keys()
