"""Side by side: `pit serve` without improvement, LiteLLM's proxy and optillm's approach `none`. Loopback only.

All three stand in front of the same scripted API, which answers at once, and are measured in turn in each round:

* latency: one client asks the API directly and through the proxy in turn. The added latency is the difference of the
  medians, and of the 99th percentiles, in milliseconds;
* rate: requests a second of `--clients` clients at once;
* memory: of the proxy and its children after the last round (resident set, MiB).

The table shows the median of the rounds. LiteLLM and optillm are installed under build/real the first time. They run as
their packages start them: one process each. A busy machine makes all figures worse.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from common import parser_of, save
from serve import latency, process, rate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from real_engines import BUILD, engine, free_port, litellm_command, optillm_command, serving


def proxies(stack: ExitStack, upstream: str) -> dict[str, tuple[str, int, str]]:
    """Start the three proxies; by name: the address, the process and the version."""
    config = BUILD / "benchmark" / "config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    model = f"{{model: openai/chat, api_base: '{upstream}', api_key: none}}"
    config.write_text(f"model_list:\n  - {{model_name: chat, litellm_params: {model}}}\n", encoding="utf-8")
    ports = {name: free_port() for name in ("pitlm", "litellm", "optillm")}
    commands: dict[str, tuple[tuple[Any, ...], str, str]] = {
        "pitlm": (
            (sys.executable, "-m", "pitlm.cli.main", "serve", "--upstream", upstream, "--concurrency", 128),
            "/healthz",
            version("pitlm"),
        ),
        "litellm": (litellm_command(config), "/health/liveliness", engine("litellm").version),
        "optillm": ((*optillm_command(upstream), "--log", "error"), "/health", engine("optillm").version),
    }
    settings = {
        "OPENAI_API_KEY": "none",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
    }
    started = {}
    for name, (command, health, number) in commands.items():
        url = f"http://127.0.0.1:{ports[name]}"
        server = serving(f"benchmark-{name}", url + health, *command, "--port", ports[name], **settings)
        started[name] = f"{url}/v1", stack.enter_context(server).pid, number
    return started


def resident(pid: int) -> float:
    """Memory of a process and its children in MiB."""
    process_ = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process_, *process_.children(recursive=True))) / 2**20


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with process(str(Path(__file__).with_name("serve.py")), "--upstream") as direct, ExitStack() as stack:
        started = proxies(stack, direct)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in started}
        rates = []
        for _ in range(options.rounds):
            rates.append(asyncio.run(rate(direct, options.clients, options.requests)))
            for name, (url, _, _) in started.items():
                found = asyncio.run(latency(direct, url, options.pairs))
                found["requests_per_s"] = asyncio.run(rate(url, options.clients, options.requests))
                rounds[name].append(found)
        medians = {
            name: {key: round(statistics.median(one[key] for one in found), 3) for key in found[0]}
            for name, found in rounds.items()
        }
        memory = {name: round(resident(pid), 1) for name, (_, pid, _) in started.items()}
    figures = {name: {"version": started[name][2], **medians[name], "memory_mib": memory[name]} for name in started}
    return {"direct_requests_per_s": statistics.median(rates), "proxies": figures}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=64, help="clients at once, for the rate")
    parser.add_argument("--requests", type=int, default=1000, help="requests for each rate")
    parser.add_argument("--pairs", type=int, default=200, help="direct and proxied requests for each latency")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = measure(options)
    print(f"{'':18}{'added p50, ms':>15}{'added p99, ms':>15}{'requests/s':>12}{'memory, MiB':>13}")
    for name, own in figures["proxies"].items():
        shown = (own["latency_added_p50_ms"], own["latency_added_p99_ms"], own["requests_per_s"], own["memory_mib"])
        print(f"{name + ' ' + own['version']:18}{shown[0]:15.2f}{shown[1]:15.2f}{shown[2]:12.0f}{shown[3]:13.0f}")
    print(f"{'directly':18}{'':30}{figures['direct_requests_per_s']:12.0f}")
    save(figures, options.json)


if __name__ == "__main__":
    main()
