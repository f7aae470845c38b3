"""Which requests the servers accept: from whom, from where, how large, how many at once; and what is never logged."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from proxies import HTTP, proxied
from starlette.websockets import WebSocketDisconnect

from pitlm.core.errors import InputError
from pitlm.serve.app import serving
from pitlm.serve.gate import COOKIE, Gate
from pitlm.serve.outcomes import Metrics
from pitlm.serve.proxying import Connections
from pitlm.serve.rating import BODY_BYTES, gate_settings
from pitlm.serve.remote import RemoteImprover, RemoteScorer
from pitlm.serve.settings import Settings

TOKEN = "the-right-token"
ASK = {"model": "chat", "messages": [{"role": "user", "content": "a private matter"}]}


def client(token: str | None, base_url: str = "http://127.0.0.1:8750", *, pages: bool = True) -> TestClient:
    app = FastAPI()
    app.add_middleware(Gate, settings=gate_settings(token), metrics=Metrics(), pages=pages)

    @app.get("/")
    def read() -> str:
        return "served"

    @app.post("/")
    async def write(request: Request) -> int:
        return len(await request.body())

    return TestClient(app, base_url=base_url)


@pytest.mark.parametrize("host", ["127.0.0.1:8750", "localhost:9999", "[::1]:8750", "localhost"])
def test_loopback_names_pass_without_a_token(host):
    assert client(None).get("/", headers={"Host": host}).json() == "served"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8750", "127.0.0.1.evil.example", "192.168.0.7:8750", ""]
)
def test_a_foreign_name_for_this_machine_is_refused(host):
    """DNS rebinding: a page of evil.example, whose name now points to this machine."""
    answer = client(None).get("/", headers={"Host": host})
    assert answer.status_code == 403
    assert "served" not in answer.text


def test_without_the_token_nothing_is_served():
    there = client(TOKEN, "http://box.lan:8750")
    for path in ("/", "/?token=", "/?token=wrong", f"/?token={TOKEN}x", "/?token=%C3%A9%00", "/missing"):
        assert there.get(path).status_code == 403
    assert there.post("/", content=b"x").status_code == 403
    assert there.get("/", headers={"Cookie": f"{COOKIE}=wrong"}).status_code == 403
    assert there.get("/", headers={"Cookie": f"{COOKIE}"}).status_code == 403
    assert not there.cookies


def test_the_token_comes_once_and_then_as_a_cookie_that_scripts_and_other_sites_do_not_have():
    there = client(TOKEN, "http://box.lan:8750")
    first = there.get(f"/?token={TOKEN}")
    assert first.json() == "served"
    cookie = first.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}={TOKEN};")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    second = there.get("/")
    assert second.json() == "served"
    assert "set-cookie" not in second.headers
    assert there.post("/", content=b"four").json() == 4


def test_another_site_s_page_cannot_even_read():
    there = client(None)
    assert there.get("/", headers={"Origin": "http://evil.example"}).status_code == 403
    assert there.get("/", headers={"Origin": "http://127.0.0.1:8750"}).json() == "served"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_s_page_cannot_send_a_plain_get(site):
    """An image or a script of another page is asked for without an origin; browsers say where it comes from."""
    for pages in (True, False):
        there = client(None, pages=pages)
        assert there.get("/", headers={"Sec-Fetch-Site": site}).status_code == 403
        assert there.get("/", headers={"Sec-Fetch-Site": "same-origin"}).json() == "served"
        assert there.get("/", headers={"Sec-Fetch-Site": "none"}).json() == "served"
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
    assert client(None).get("/", headers=link).json() == "served"
    assert client(None, pages=False).get("/", headers=link).status_code == 403


def test_no_path_begins_a_line_of_the_log(caplog):
    with caplog.at_level("INFO", logger="pitlm"):  # another server in this process may have changed the level
        client(None).get("/a%0aGET%20/forged%1b[2J" + "x" * 500)
    [line] = [record.getMessage() for record in caplog.records if record.name == "pitlm.serve"]
    assert line.startswith("GET /a\\nGET /forged\\x1b[2Jxxx")
    assert len(line) < 300


def test_a_token_in_the_wrong_place_is_none():
    """A server for browsers takes no bearer token, and a server for programs takes neither cookie nor address."""
    assert client(TOKEN).get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 403
    for how in ({"params": {"token": TOKEN}}, {"headers": {"Cookie": f"{COOKIE}={TOKEN}"}}):
        assert client(TOKEN, pages=False).get("/", **how).status_code == 401
    for given in (TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN}x", "Bearer ", "Bearer \u00e9"):
        assert client(TOKEN, pages=False).get("/", headers={"Authorization": given.encode()}).status_code == 401
    right = client(TOKEN, pages=False).get("/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert right.json() == "served"
    assert "set-cookie" not in right.headers


def test_web_sockets_are_not_answered():
    with pytest.raises(WebSocketDisconnect), client(None).websocket_connect("/"):
        pass


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8750", 200),
        ("http://127.0.0.1:9999", 403),  # another program on this machine
        ("http://evil.example", 403),
        ("null", 403),  # a sandboxed frame
        ("", 403),
        (None, 200),  # no browser
    ],
)
def test_another_site_s_page_cannot_write(origin, status):
    headers = {} if origin is None else {"Origin": origin}
    assert client(None).post("/", content=b"x", headers=headers).status_code == status


def test_long_bodies_are_refused_before_they_are_read():
    there = client(None)
    assert there.post("/", content=b"x" * BODY_BYTES).json() == BODY_BYTES
    assert there.post("/", content=b"x" * (BODY_BYTES + 1)).status_code == 413
    # In chunks, without a known length: no more is read than is allowed.
    assert there.post("/", content=iter([b"x" * 10, b"x" * 10])).json() == 20
    read = []
    parts = (read.append(n) or b"x" * 1024 for n in range(1000))
    assert there.post("/", content=parts).status_code == 413
    assert there.post("/", content=b"x", headers={"Content-Length": "-1"}).status_code == 400


def test_every_answer_has_the_headers():
    for answer in (client(None).get("/"), client(None).get("/missing"), client(TOKEN).get("/")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.fixture(scope="module")
def guarded():
    with proxied(token="door-key", upstream_key="sk-upstream", hosts=None, max_body=1000 / 2**20) as proxy:
        yield proxy


def test_a_token_is_asked_for_and_the_upstream_gets_its_own_key(guarded):
    for key in ("wrong", "door-key2", "door-ke"):
        reply = HTTP.post(f"{guarded.url}/chat/completions", json=ASK, headers={"authorization": f"Bearer {key}"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        guarded.client(api_key="wrong").models.list()
    assert guarded.upstream.requests == []
    assert guarded.client(api_key="door-key").chat.completions.create(**ASK).pit["outcome"] == "improved"
    assert guarded.upstream.requests[0]["headers"]["authorization"] == "Bearer sk-upstream"
    root = guarded.url.removesuffix("/v1")
    assert [HTTP.get(f"{root}/{path}").status_code for path in ("healthz", "metrics", "")] == [200, 401, 200]
    page = HTTP.get(root)  # anybody may load the page, which holds no data; its requests need the token
    assert "script-src 'nonce-" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    for secret in ("door-key", "sk-upstream", guarded.direct):
        assert secret not in page.text


def test_neither_keys_nor_conversations_are_logged(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="pitlm")  # another server in this process may have changed the level
    client = guarded.client(api_key="door-key", default_query={"key": "in-the-query"})
    client.chat.completions.create(**ASK)
    for model in ("cut", "broken", "nonsense"):
        with pytest.raises((openai.APIError, json.JSONDecodeError)):
            list(client.chat.completions.create(**{**ASK, "model": model}))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("pitlm", "uvicorn"))]
    assert any(line.startswith("POST /v1/chat/completions 200") for line in ours)
    text = "\n".join(ours)
    for secret in ("door-key", "sk-upstream", "private", "in-the-query"):
        assert secret not in text


def test_a_body_has_a_largest_size_whether_it_is_announced_or_not(guarded):
    def in_parts():
        for _ in range(5):
            yield b" " * 400

    for content in (b" " * 1001, in_parts()):
        reply = HTTP.post(f"{guarded.url}/completions", content=content, headers={"authorization": "Bearer door-key"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    fits = HTTP.post(f"{guarded.url}/completions", content=b" " * 1000, headers={"authorization": "Bearer door-key"})
    assert fits.json()["error"]["message"] == "not JSON"  # the upstream's own reply


def test_more_than_the_queue_holds_are_told_to_come_again():
    with proxied(concurrency=1, queue=1, improves=False) as proxy:

        async def main():
            async with httpx.AsyncClient(base_url=proxy.url, timeout=600) as client:
                stalled = asyncio.ensure_future(client.post("/chat/completions", json={**ASK, "model": "stall"}))
                while not proxy.upstream.requests:
                    await asyncio.sleep(0.01)
                both = [asyncio.ensure_future(client.post("/chat/completions", json=ASK)) for _ in range(2)]
                [refused], [queued] = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                health = await client.get(proxy.url.removesuffix("/v1") + "/healthz")
                assert not queued.done()
                stalled.cancel()
                return refused.result(), health, await queued

        refused, health, queued = asyncio.run(main())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "too_many_requests"
    assert (health.status_code, health.json()["improves"]) == (200, False)
    assert (queued.status_code, queued.headers["x-pit-reason"]) == (200, "off")


def test_an_upstream_that_says_nothing_is_a_time_out():
    with proxied(upstream_seconds=0.1) as proxy, pytest.raises(openai.InternalServerError) as caught:
        proxy.client().chat.completions.create(**{**ASK, "model": "stall"})
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")


def test_an_upstream_that_is_not_there_is_a_bad_gateway():
    with proxied() as gone:
        url = gone.direct

    async def main():
        upstream = Connections(url)
        try:
            async with upstream.response("GET", "/models", [], b""):
                pass
        finally:
            await upstream.aclose()

    with pytest.raises(Exception, match="cannot be reached or broke off") as caught:
        asyncio.run(main())
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "rebound.example:80"}, 403),
        ({"origin": "https://page.example"}, 403),
        ({"host": "localhost"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
    ],
)
def test_pages_of_other_sites_cannot_use_a_server_of_this_machine(proxy, headers, status):
    assert HTTP.post(f"{proxy.url}/chat/completions", json=ASK, headers=headers).status_code == status


@pytest.mark.parametrize(
    "url", ["api.example.com/v1", "ftp://api.example.com", "http://", "http://[", "http://a:99999"]
)
def test_an_upstream_and_a_remote_model_need_a_url(url):
    for make in (Connections, RemoteScorer, lambda url: RemoteImprover(Settings(improver=url))):
        with pytest.raises(InputError, match="expected a URL such as"):
            make(url)


def test_a_proxy_of_an_unknown_kind_is_one_message(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "nonsense://proxy")
    url = "http://example.com/v1"
    for make in (Connections, lambda url: RemoteImprover(Settings(improver=url))):
        with pytest.raises(InputError, match="cannot load a connection: Unknown scheme for proxy"):
            make(url)


def test_a_token_for_clients_needs_a_key_for_the_upstream():
    async def main():
        async with serving(Settings(upstream="http://127.0.0.1:9/v1", token="t")):
            pass

    with pytest.raises(InputError, match="--upstream-key-env"):
        asyncio.run(main())
