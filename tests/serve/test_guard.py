"""Which requests the servers accept: from whom, from where, and how large."""

from __future__ import annotations

import socket

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from pitlm.core.errors import InputError
from pitlm.serve.guard import COOKIE, MAX_BODY, address, bind, guard, make_token

TOKEN = "the-right-token"


def client(token: str | None, base_url: str = "http://127.0.0.1:8750") -> TestClient:
    app = FastAPI()
    guard(app, token)

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
    assert answer.status_code == 400
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
    assert there.post("/", content=b"x" * MAX_BODY).json() == MAX_BODY
    assert there.post("/", content=b"x" * (MAX_BODY + 1)).status_code == 413
    assert there.post("/", content=iter([b"x" * 10])).status_code == 411  # in chunks, without a known length
    assert there.post("/", content=b"x", headers={"Content-Length": "-1"}).status_code == 411


def test_every_answer_has_the_headers():
    for answer in (client(None).get("/"), client(None).get("/missing"), client(TOKEN).get("/")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_only_loopback_goes_without_a_token():
    assert [make_token(host) for host in ("127.0.0.1", "localhost", "::1")] == [None] * 3
    tokens = {make_token(host) for host in ("0.0.0.0", "::", "192.168.0.7", "127.0.0.1.evil.example") for _ in range(5)}
    assert len(tokens) == 20
    assert min(len(token) for token in tokens if token) >= 32


def test_the_address_is_one_that_can_be_opened():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address(listener, None) == f"http://127.0.0.1:{port}/"
        assert address(listener, "t") == f"http://127.0.0.1:{port}/?token=t"
        with pytest.raises(InputError, match=rf"--port {port}: .*\(Address already in use\)$"):
            bind("127.0.0.1", port)
    with bind("0.0.0.0", 0) as listener:
        assert address(listener, "t") == f"http://{socket.gethostname()}:{listener.getsockname()[1]}/?token=t"
    with pytest.raises(InputError, match=r"198\.51\.100\.1"):
        bind("198.51.100.1", 0)


def test_no_part_of_a_reply_waits_for_an_acknowledgement():
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
