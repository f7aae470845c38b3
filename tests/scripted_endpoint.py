"""An OpenAI-compatible server on loopback with scripted replies. It counts calls and can fail in many ways.

    with ScriptedEndpoint(lambda request: "Verdict: A") as server:
        ...  # server.base_url, server.calls, server.answered

The function gets the request's JSON body and returns a string or one of the outcomes below; ``in_turn`` plays a
list. From a shell, for trying things out: ``python tests/scripted_endpoint.py --port 8000 --reply "Verdict: A"``.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Say:
    """A reply with text. Token counts that are None are counted in words; without ``usage``, none are reported."""

    text: str
    input_tokens: int | None = None
    cached_tokens: int = 0
    output_tokens: int | None = None
    finish_reason: str = "stop"
    usage: bool = True


@dataclass(frozen=True)
class Fail:
    """An HTTP error; ``retry_after`` in seconds, fractions too."""

    status: int = 500
    retry_after: float | str | None = None
    message: str = "scripted failure"


@dataclass(frozen=True)
class Stall:
    """No reply for some seconds, or until the server closes; then the connection breaks off."""

    seconds: float = 60.0


@dataclass(frozen=True)
class CutOff:
    """The connection breaks off in the middle of the body."""

    body: str = '{"choices": [{"mess'


@dataclass(frozen=True)
class Nonsense:
    """Status 200 with a body that is no chat completion."""

    body: str = "<html>Welcome</html>"
    content_type: str = "application/json"


Outcome = str | Say | Fail | Stall | CutOff | Nonsense


@dataclass
class Call:
    """One request; ``answered`` once a text reply was sent in full."""

    request: dict[str, Any]
    headers: dict[str, str]
    answered: bool = False
    arrived: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        """The last message's content."""
        return self.request["messages"][-1]["content"]


def in_turn(outcomes: Iterable[Outcome], then: Outcome = "ok") -> Callable[[dict[str, Any]], Outcome]:
    """Play a list, one outcome for each call, then always ``then``."""
    left, lock = iter(outcomes), threading.Lock()

    def reply(request: dict[str, Any]) -> Outcome:
        with lock:
            return next(left, then)

    return reply


class ScriptedEndpoint:
    """The server, as a context manager. Tests may replace ``reply`` while it runs."""

    def __init__(self, reply: Callable[[dict[str, Any]], Outcome] = lambda request: "ok", port: int = 0) -> None:
        self.reply = reply
        self.calls: list[Call] = []
        self.most_at_once = 0
        self.closing = threading.Event()
        self._busy = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def answered(self) -> list[Call]:
        return [call for call in self.calls if call.answered]

    def __enter__(self) -> ScriptedEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # otherwise headers and body wait for each other, 40 ms a call

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                self.send(200, json.dumps({"object": "list", "data": [{"id": "scripted", "object": "model"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                call = Call(body, {name.lower(): value for name, value in self.headers.items()})
                with endpoint.lock:
                    endpoint.calls.append(call)
                    endpoint._busy += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._busy)
                try:
                    self.play(call, endpoint.reply(body))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with endpoint.lock:
                        endpoint._busy -= 1

            def play(self, call: Call, outcome: Outcome) -> None:
                match outcome:
                    case Fail(status, retry_after, message):
                        more = {} if retry_after is None else {"Retry-After": str(retry_after)}
                        self.send(status, json.dumps({"error": {"message": message, "code": status}}), more)
                    case Stall(seconds):
                        endpoint.closing.wait(seconds)
                        self.close_connection = True
                    case CutOff(text):
                        self.send(200, text, {"Content-Length": str(len(text) + 100)})
                        self.close_connection = True
                    case Nonsense(text, kind):
                        self.send(200, text, {"Content-Type": kind})
                    case str() | Say():
                        said = outcome if isinstance(outcome, Say) else Say(outcome)
                        if call.request.get("stream"):
                            self.stream(call.request, said)
                        else:
                            self.send(200, json.dumps(completion(call.request, said)))
                        call.answered = True

            def send(self, status: int, text: str, more: dict[str, str] | None = None) -> None:
                data = text.encode()
                headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(more or {})}
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def stream(self, request: dict[str, Any], said: Say) -> None:
                whole = completion(request, said)
                shell = {"id": whole["id"], "object": "chat.completion.chunk", "created": 0, "model": whole["model"]}
                words = said.text.split(" ")
                deltas = [{"role": "assistant", "content": ""}]
                deltas += [{"content": word + " " * (index < len(words) - 1)} for index, word in enumerate(words)]
                events = [{**shell, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
                events.append({**shell, "choices": [{"index": 0, "delta": {}, "finish_reason": said.finish_reason}]})
                if said.usage and (request.get("stream_options") or {}).get("include_usage"):
                    events.append({**shell, "choices": [], "usage": whole["usage"]})
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                for event in events:
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

        return Handler


def completion(request: dict[str, Any], said: Say) -> dict[str, Any]:
    """The body of a chat completion."""
    words = sum(len(str(message["content"]).split()) for message in request["messages"])
    given = words if said.input_tokens is None else said.input_tokens
    made = len(said.text.split()) if said.output_tokens is None else said.output_tokens
    body = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": request.get("model", "scripted"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": said.text},
                "finish_reason": said.finish_reason,
            }
        ],
    }
    if said.usage:
        body["usage"] = {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
            "prompt_tokens_details": {"cached_tokens": said.cached_tokens},
        }
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server on loopback that always says the same.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--reply", default="ok")
    given = parser.parse_args()
    with ScriptedEndpoint(lambda request: given.reply, given.port) as server:
        print(server.base_url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{len(server.calls)} calls")


if __name__ == "__main__":
    main()
