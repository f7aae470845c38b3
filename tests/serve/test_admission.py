"""Which requests the server admits, how many at once, and what it never logs."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import openai
import pytest
from proxies import HTTP, proxied

from pitlm.core.errors import InputError
from pitlm.serve.app import serving
from pitlm.serve.settings import Settings
from pitlm.serve.upstream import Upstream

ASK = {"model": "chat", "messages": [{"role": "user", "content": "a private matter"}]}


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
        upstream = Upstream(url)
        try:
            async with upstream.response("GET", "/models", [], b""):
                pass
        finally:
            await upstream.close()

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


@pytest.mark.parametrize("url", ["api.example.com/v1", "ftp://api.example.com", "http://"])
def test_an_upstream_needs_a_url(url):
    with pytest.raises(InputError, match="expected a URL such as"):
        Upstream(url)


def test_a_token_for_clients_needs_a_key_for_the_upstream():
    async def main():
        async with serving(Settings(upstream="http://127.0.0.1:9/v1", token="t")):
            pass

    with pytest.raises(InputError, match="--upstream-key-env"):
        asyncio.run(main())
