"""A Ray cluster of two nodes in two network namespaces, one of which is cut off in the middle of a job. Needs root."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_engines import BUILD, ROOT, pit, read_rows, run, write_rows

HEAD, OTHER = "10.213.7.1", "10.213.7.2"
NAMES = {"pit-head": HEAD, "pit-other": OTHER}
ROWS, PART = 400, 20
RAY = Path(sys.executable).with_name("ray")
WITHOUT_TOKEN = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def inside(name, *command):
    """The command that runs another one in a namespace."""
    return ("ip", "netns", "exec", name, *command)


@pytest.fixture
def cluster():
    """Two nodes that see each other over one cable. Yield the cable's name at the head."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    begun = []
    try:
        for name in NAMES:
            run("ip", "netns", "add", name)
            run(*inside(name, "ip", "link", "set", "lo", "up"))
        cables = "pit-a netns pit-head type veth peer name pit-b netns pit-other"
        run("ip", "link", "add", *cables.split())
        for (name, address), cable in zip(NAMES.items(), ("pit-a", "pit-b"), strict=True):
            run(*inside(name, "ip", "address", "add", f"{address}/24", "dev", cable))
            run(*inside(name, "ip", "link", "set", cable, "up"))
        shared = ("--num-cpus", "1", "--disable-usage-stats", "--block")
        nodes = {
            "pit-head": (
                "--head",
                "--node-ip-address",
                HEAD,
                "--port",
                "6399",
                "--include-dashboard",
                "false",
                "--temp-dir",
                "/tmp/pit-head",
            ),
            "pit-other": ("--address", f"{HEAD}:6399", "--node-ip-address", OTHER),
        }
        for name, options in nodes.items():
            log = (BUILD / "logs" / f"ray-{name}.log").open("w")
            command = inside(name, str(RAY), "start", *options, *shared)
            settings = {**os.environ, **WITHOUT_TOKEN}
            begun.append(subprocess.Popen(command, stdout=log, stderr=log, env=settings, start_new_session=True))
            time.sleep(15)
            assert begun[-1].poll() is None, f"{log.name}: the node stopped"
        yield "pit-a"
    finally:
        for process in begun:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for name in NAMES:
            for left in subprocess.run(
                ("ip", "netns", "pids", name), capture_output=True, text=True, check=False
            ).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(left), signal.SIGKILL)
            subprocess.run(("ip", "netns", "delete", name), check=False)


@pytest.mark.real("Ray")
def test_a_node_is_cut_off(cluster, pocket_models):
    """Two nodes; the network of one is cut in the middle of its part: nothing is lost, and nothing is there twice."""
    from pitlm.worlds.pocket import make_preferences

    rows = [{"prompt": p.prompt.text, "response": p.rejected} for p in make_preferences(ROWS, seed=12)]
    source, out, alone = BUILD / "ray-in.jsonl", BUILD / "ray-out", BUILD / "ray-alone.jsonl"
    write_rows(source, rows)
    models = ("--improver", pocket_models["improver"], "--gap", pocket_models["gap"], "--force")
    pit("improve", source, "-o", alone, *models, OMP_NUM_THREADS="1")
    command = (sys.executable, "-m", "pitlm.cli.main", "improve", source, "-o", out, *models)
    command = inside("pit-head", *map(str, command), "--engine", "ray", "--workers", "2", "--part-rows", str(PART))
    settings = {**os.environ, **WITHOUT_TOKEN, "RAY_ADDRESS": f"{HEAD}:6399"}
    log = BUILD / "logs" / "ray-job.log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=settings, cwd=ROOT) as job:
        parts = out.with_name("ray-out.partial") / "parts"
        end = time.monotonic() + 600
        while len(list(parts.glob("part-*.jsonl"))) < 4 and job.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert job.poll() is None, log.read_text()[-3000:]
        run(*inside("pit-head", "ip", "link", "set", cluster, "down"))
        assert job.wait(1200) == 0, log.read_text()[-3000:]
    made = [row for part in sorted(out.glob("part-*.jsonl")) for row in read_rows(part)]
    assert made == read_rows(alone)
