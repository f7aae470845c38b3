"""Which requests the servers accept: from whom, from where, and how large."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from pitlm.serve.gate import COOKIE, Gate
from pitlm.serve.rating import BODY_BYTES, gate_settings

TOKEN = "the-right-token"


def client(token: str | None, base_url: str = "http://127.0.0.1:8750", *, pages: bool = True) -> TestClient:
    app = FastAPI()
    app.add_middleware(Gate, settings=gate_settings(token), pages=pages)

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
