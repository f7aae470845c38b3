"""An OpenAI-compatible upstream that does what the model's name says, and a way to serve any application in a test.

It remembers every request for the tests. Written from OpenAI's API reference, not from our code.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager, contextmanager

import uvicorn

TEXT = "The answer is four ."
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
ERRORS = {
    "bad": (
        400,
        {"message": "max_tokens is too large", "type": "invalid_request_error", "param": "max_tokens", "code": "x"},
    ),
    "forbidden": (
        401,
        {"message": "Incorrect API key", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"},
    ),
    "limited": (429, {"message": "Slow down", "type": "requests", "param": None, "code": "rate_limit_exceeded"}),
    "broken": (500, {"message": "Oops", "type": "server_error", "param": None, "code": None}),
}


class Upstream:
    """The ASGI application.

    Models: ``chat`` answers; ``tools`` calls one; ``KEY of ERRORS`` fails; ``stall`` never answers; ``slow`` waits
    between chunks; ``cut`` breaks off in the middle; ``nonsense`` is no JSON; ``reasoning`` thinks aloud first;
    ``filtered`` ends on the content filter.
    """

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.cancelled = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = scope["query_string"].decode()
        self.requests.append(
            {"method": scope["method"], "path": scope["path"], "query": query, "headers": headers, "body": body}
        )
        if scope["path"] == "/v1/models":
            return await reply(send, 200, {"object": "list", "data": [{"id": "chat", "object": "model"}]})
        if scope["path"] not in ("/v1/chat/completions", "/v1/completions"):
            return await reply(
                send, 404, {"error": {"message": "no such path", "type": "x", "param": None, "code": None}}
            )
        try:
            request = json.loads(body)
        except ValueError:
            return await reply(send, 400, {"error": {"message": "not JSON", "type": "x", "param": None, "code": None}})
        await self.complete(request, receive, send)

    async def complete(self, request, receive, send) -> None:
        model = request["model"]
        if model in ERRORS:
            status, error = ERRORS[model]
            return await reply(send, status, {"error": error}, [(b"retry-after", b"7"), (b"x-request-id", b"req_1")])
        if model == "stall":
            await receive()  # until the client disconnects
            self.cancelled += 1
            return None
        if model == "nonsense":
            return await raw(send, 200, b"<html>not what you wanted", [(b"content-type", b"application/json")])
        if request.get("stream"):
            return await self._stream(request, send)
        content = completion(request)
        if model == "cut":
            headers = [(b"content-type", b"application/json"), (b"content-length", b"9999")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(content).encode()[:40], "more_body": True})
            return None  # uvicorn closes the connection
        return await reply(send, 200, content, [(b"x-request-id", b"req_1"), (b"set-cookie", b"a=b")])

    async def _stream(self, request, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        made = chunks(request)
        if request["model"] == "cut":
            made = made[:3]
        for chunk in made:
            await send(
                {
                    "type": "http.response.body",
                    "body": b"data: " + json.dumps(chunk).encode() + b"\n\n",
                    "more_body": True,
                }
            )
            if request["model"] == "slow":
                await asyncio.sleep(0.05)
        if request["model"] != "cut":
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def text_of(request) -> str:
    return request.get("metadata", {}).get("say", TEXT)


def completion(request) -> dict:
    """A whole chat completion."""
    message = {"role": "assistant", "content": text_of(request), "refusal": None}
    end = "stop"
    if request["model"] == "tools":
        message, end = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}, "tool_calls"
    if request["model"] == "filtered":
        end = "content_filter"
    more = {"token_ids": [1, 2], "stop_reason": 7} if request["model"] == "described" else {}
    message |= {"citations": ["a"]} if more else {}
    choices = [
        {**more, "index": index, "message": message, "logprobs": None, "finish_reason": end}
        for index in range(request.get("n") or 1)
    ]
    shape = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": request["model"]}
    return {
        **shape,
        "choices": choices,
        "usage": request.get("metadata", {}).get("usage", USAGE),
        "system_fingerprint": "fp_1",
    }


def chunks(request) -> list[dict]:
    """A chat completion in chunks, one for each word."""
    deltas: list[dict] = [{"role": "assistant", "content": ""}]
    end = "content_filter" if request["model"] == "filtered" else "stop"
    if request["model"] == "tools":
        deltas += [{"content": "Let me see. "}, {"tool_calls": [{"index": 0, **TOOL_CALL}]}]
        end = "tool_calls"
    else:
        deltas += [{"reasoning_content": "two and two"}] if request["model"] == "reasoning" else []
        words = text_of(request).split(" ")
        deltas += [{"content": word + (" " if index < len(words) - 1 else "")} for index, word in enumerate(words)]
    shape = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": request["model"]}
    made = [{**shape, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if request["model"] == "described":
        made = [chunk | {"citations": ["a"]} for chunk in made]
        for chunk in made:
            chunk["choices"][0] |= {"token_ids": [1], "stop_reason": 7}
    made.append({**shape, "choices": [{"index": 0, "delta": {}, "finish_reason": end}]})
    if (request.get("stream_options") or {}).get("include_usage"):
        made.append({**shape, "choices": [], "usage": USAGE})
    return made


async def reply(send, status, content, headers=()) -> None:
    await raw(send, status, json.dumps(content).encode(), [(b"content-type", b"application/json"), *headers])


async def raw(send, status, body, headers) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})


@contextmanager
def served(app):
    """Serve an ASGI application, or the one that an async context manager yields, on a free loopback port; yield its
    URL."""

    @asynccontextmanager
    async def as_it_is():
        yield app

    made = app if hasattr(app, "__aenter__") else as_it_is()
    ready, address = threading.Event(), []
    server: list[uvicorn.Server] = []

    async def main() -> None:
        async with made as application:
            config = uvicorn.Config(application, port=0, log_level="warning", lifespan="off", timeout_keep_alive=30)
            server.append(uvicorn.Server(config))
            listener = config.bind_socket()
            address.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
            task = asyncio.ensure_future(server[0].serve(sockets=[listener]))
            while not server[0].started and not task.done():
                await asyncio.sleep(0.005)
            ready.set()
            await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(600)
    try:
        yield address[0]
    finally:
        server[0].should_exit = server[0].force_exit = True
        thread.join(20)
