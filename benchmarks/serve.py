"""Measures the time that `pit serve` adds to an API, and how it copes with an API that misbehaves. Loopback only.

Three parts, against a scripted upstream in a process of its own:

* latency: one client asks the upstream directly and through the proxy in turn, with improvement off. The added latency
  is the difference of the medians, and of the 99th percentiles;
* rate: `--clients` ask at once, through the proxy with improvement off, and directly as a control. The processor time
  of the proxy per request shows what one core could do on an idle machine;
* faults: `--clients` ask at once, `--requests` in all, a third of them streamed, with a remote improver and gap model.
  The upstream fails, stalls, breaks off or replies nonsense in 20% of the requests, the improver in 10%. The benchmark
  counts requests without an answer (lost), answers to another request and requests that the upstream saw twice
  (doubled), and 5xx replies while the upstream was well (foreign). Memory growth is the proxy's memory at the end minus
  its memory after the first fifth.

A busy machine makes the figures worse, because client, upstream and proxy share its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from common import parser_of, save

FAULTS = ("fail", "stall", "cut", "nonsense")
ANSWERED = 600  # seconds, after which a request counts as lost; far more than the proxy may take


class Scripted(asyncio.Protocol):
    """The upstream. It does what a request's `metadata` says, on plain sockets, so that it is not the slow part."""

    seen: Counter[str] = Counter()

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"content-length: *(\d+)", self.buffer[:end], re.IGNORECASE)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < whole:
                return
            head, body, self.buffer = self.buffer[:end], self.buffer[end + 4 : whole], self.buffer[whole:]
            self.answer(head.split(b" ", 2)[1].decode(), json.loads(body or b"{}"))

    def answer(self, path: str, request: dict[str, Any]) -> None:
        if path == "/seen":
            return self.send(self.seen)
        if path == "/v1/score":
            return self.send({"gap": 1.0, "margin": 0.0})
        if request.get("model") == "improver":
            text = request["messages"][-2]["content"]
            fault = ("fail", "stall")[len(text) % 2] if int(re.findall(r"\d+", text)[0]) % 10 == 3 else None
            text += " Better"
        else:
            wanted = request.get("metadata") or {"id": "?"}  # a proxy may keep it to itself
            self.seen[wanted["id"]] += 1
            text, fault = f"answer to {wanted['id']} .", wanted.get("fault")
        if fault == "stall":
            return None
        if fault == "fail":
            return self.send({"error": {"message": "no", "type": "server_error", "param": None, "code": None}}, 503)
        content = json.dumps(completion(text)).encode()
        if request.get("stream"):
            return self.stream(text, fault)
        if fault == "nonsense":
            content = b"<html>nothing of use"
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode()
        self.transport.write(head + (content[:30] if fault == "cut" else content))
        if fault == "cut":
            self.transport.close()

    def stream(self, text: str, fault: str | None) -> None:
        deltas = [{"role": "assistant", "content": ""}, *({"content": f"{word} "} for word in text.split())]
        chunks = [{"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
        events += [
            b'data: {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n',
            b"data: [DONE]\n\n",
        ]
        if fault == "nonsense":
            events = [b"data: what?\n\n"]
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        sent = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        if fault == "cut":
            self.transport.write(head + b"".join(sent[:3]))
            return self.transport.close()
        self.transport.write(head + b"".join(sent) + b"0\r\n\r\n")

    def send(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}


async def be_upstream() -> None:
    server = await asyncio.get_running_loop().create_server(Scripted, "127.0.0.1", 0)
    print(f"Serving http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """Run a server in a process of its own, and yield its URL."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as made:
        try:
            assert made.stdout is not None
            yield made.stdout.readline().split()[1]
        finally:
            made.terminate()
            made.wait()


@dataclass
class Client:
    """One connection to a server, reopened when it is lost."""

    url: str
    streams: Any = None

    async def ask(self, method: str, path: str, body: dict[str, Any] | None, header: str = "") -> tuple[int, str, bool]:
        """Return status, body, and whether the response was complete; status 0 if there was no response."""
        host, port = self.url.split("/")[2].split(":")
        content = b"" if body is None else json.dumps(body).encode()
        head_lines = ("content-type: application/json", f"content-length: {len(content)}", header)
        lines = (f"{method} {path} HTTP/1.1", f"host: {host}:{port}", *head_lines)
        try:
            self.streams = self.streams or await asyncio.open_connection(host, int(port))
            reader, writer = self.streams
            writer.write("\r\n".join(line for line in lines if line).encode() + b"\r\n\r\n" + content)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
        except (OSError, asyncio.IncompleteReadError):
            self.streams = None
            return 0, "", False
        status, text = int(head.split(b" ", 2)[1]), b""
        try:
            if length := re.search(rb"content-length: (\d+)", head):
                text = await reader.readexactly(int(length[1]))
                if b"connection: close" in head:
                    self.close()
                return status, text.decode(), True
            while size := int(await reader.readuntil(b"\r\n"), 16):
                text += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
            return status, text.decode(), True
        except (OSError, asyncio.IncompleteReadError):
            self.streams = None
            return status, text.decode(), False

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


async def timed(client: Client, number: int) -> float:
    began = time.perf_counter()
    request = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Hello " * 50}],
        "metadata": {"id": f"t{number}"},
    }
    status, text, whole = await client.ask("POST", "/v1/chat/completions", request, "x-pit: off")
    assert (status, whole) == (200, True), (status, text)
    return 1e3 * (time.perf_counter() - began)


async def latency(direct: str, proxied: str, pairs: int) -> dict[str, float]:
    """Return the milliseconds that the proxy adds for one client, from direct and proxied requests in turn."""
    clients, times = (Client(direct), Client(proxied)), ([], [])
    for number in range(-50, pairs):
        for client, kept in zip(clients, times, strict=True):
            took = await timed(client, number)
            if number >= 0:  # negative numbers warm up
                kept.append(took)
    for client in clients:
        client.close()
    cuts = [statistics.quantiles(kept, n=100) for kept in times]
    return {
        **{f"latency_direct_p{p}_ms": round(cuts[0][p - 1], 3) for p in (50, 99)},
        **{f"latency_added_p{p}_ms": round(cuts[1][p - 1] - cuts[0][p - 1], 3) for p in (50, 99)},
    }


async def rate(url: str, clients: int, requests: int) -> float:
    """Return the requests a second with ``clients`` at once."""

    async def one() -> None:
        client = Client(url)
        for number in range(requests // clients):
            await timed(client, number)
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return round(requests // clients * clients / (time.perf_counter() - began), 1)


@dataclass
class Tally:
    """Counts the outcomes of the faults part."""

    answered: int = 0
    lost: int = 0
    doubled: int = 0
    foreign_5xx: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def count(self, request: dict[str, Any], status: int, text: str, whole: bool) -> None:
        wanted = request["metadata"]
        fault, name = wanted.get("fault"), wanted["id"]
        self.answered += 1
        # Only a stream that the upstream breaks off may break off here; every other response must be complete.
        if (
            status == 0
            or (not whole and fault != "cut")
            or (fault is None and status == 200 and f"{name} " not in spoken(text))
        ):
            self.lost += 1
        self.doubled += any(other != name for other in re.findall(r"answer to (\w+)", spoken(text)))
        self.foreign_5xx += status >= 500 and fault is None
        self.outcomes[f"{fault or 'well'} {status}"] += 1


def spoken(text: str) -> str:
    """Return the words of a response, streamed or not."""
    return "".join(re.findall(r'"content": "([^"]*)"', text))


async def faults(proxied: str, direct: str, clients: int, requests: int) -> dict[str, Any]:
    random_, tally, memory = random.Random(0), Tally(), [0.0]
    todo = iter(range(requests))

    async def one() -> None:
        client = Client(proxied)
        for number in todo:
            fault = {"fault": random_.choice(FAULTS)} if random_.random() < 0.2 else {}
            request = {
                "model": "chat",
                "messages": [{"role": "user", "content": "Hello"}],
                "metadata": {"id": f"r{number}", **fault},
            }
            request |= {"stream": True} if random_.random() < 1 / 3 else {}
            try:
                async with asyncio.timeout(ANSWERED):
                    tally.count(request, *await client.ask("POST", "/v1/chat/completions", request))
            except TimeoutError:
                tally.lost += 1
                client.streams = None
            if tally.answered == requests // 5:
                memory[0] = await resident(proxied)
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    seen = json.loads((await Client(direct).ask("GET", "/seen", None))[1])
    again = sum(count - 1 for name, count in seen.items() if name.startswith("r"))
    return {
        "requests": requests,
        "lost": tally.lost + requests - tally.answered,
        "doubled": tally.doubled + again,
        "foreign_5xx": tally.foreign_5xx,
        "unseen": sum(f"r{number}" not in seen for number in range(requests)),
        "memory_mib": round(await resident(proxied), 1),
        "memory_growth_mib": round(await resident(proxied) - memory[0], 1),
        "faults_seconds": round(time.perf_counter() - began, 1),
        "outcomes": dict(sorted(tally.outcomes.items())),
    }


async def resident(proxied: str) -> float:
    """Return the memory of the proxy's process in MiB."""
    return await said(proxied, "process_resident_memory_bytes") / 2**20


async def said(proxied: str, name: str) -> float:
    """Read a figure from the proxy's own metrics."""
    text = (await Client(proxied).ask("GET", "/metrics", None))[1]
    return float(re.findall(rf"^{name} (\S+)", text, re.MULTILINE)[0])


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    serve = ("-m", "pitlm.cli.main", "serve", "--port", "0", "--concurrency", "128")
    with process(__file__, "--upstream") as direct:
        limits = ("--improve-timeout", str(options.patience), "--upstream-timeout", str(options.patience))
        models = ("--improver", direct, "--gap", direct, "--rounds", "2")
        with process(*serve, "--upstream", direct, *models, *limits) as proxied:
            figures: dict[str, Any] = await latency(direct, proxied, options.requests // 5)
            busy = await said(proxied, "process_cpu_seconds_total")
            for name, url in (("direct", direct), ("proxied", proxied)):
                figures[f"requests_per_s_{name}"] = await rate(url, options.clients, options.requests)
            busy = await said(proxied, "process_cpu_seconds_total") - busy
            figures["cpu_ms_per_request"] = round(1e3 * busy / options.requests, 3)
            return {**figures, **await faults(proxied, direct, options.clients, options.requests)}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument(
        "--patience", type=float, default=2.0, help="seconds that the proxy waits for upstream and improver"
    )
    parser.add_argument(
        "--upstream", action="store_true", help="run as the scripted upstream; the benchmark starts itself so"
    )
    options = parser.parse_args()
    if options.upstream:
        return asyncio.run(be_upstream())
    figures = asyncio.run(measure(options))
    for name, value in figures.items():
        print(f"{name:26} {value}")
    save(figures, options.json)


if __name__ == "__main__":
    main()
