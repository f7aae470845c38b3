"""The socket that a server listens on, and the address that people open."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from pitlm.core.errors import InputError
from pitlm.serve import web
from pitlm.serve.web import address, bind, make_server, make_token, respond


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


@pytest.fixture
def slow_server(monkeypatch):
    """A server whose answer takes much longer than the patience for the head of a request."""
    monkeypatch.setattr(web, "PATIENCE", 0.1)

    async def app(scope, receive, send):
        await asyncio.sleep(0.5)
        await respond(send, 200, [], scope["path"].encode())

    with bind("127.0.0.1", 0) as listener:
        server = make_server(app, lifespan="off")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("head", [b"", b"GET /a HTTP/1.1\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_head_that_does_not_come_ends_the_connection(slow_server, head):
    with socket.create_connection(slow_server) as client:
        client.sendall(head)
        assert client.recv(99) == b""


def test_a_slow_answer_is_waited_for_and_then_the_next_head_for_a_while(slow_server):
    with socket.create_connection(slow_server) as client, client.makefile("rb") as answers:
        client.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
        client.sendall(b"GET /b HTT")  # the head of a second request, never finished
        assert answers.read().endswith(b"\r\n\r\n/a")  # to the end of the connection
