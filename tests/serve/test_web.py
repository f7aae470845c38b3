"""The socket that a server listens on, and the address that people open."""

from __future__ import annotations

import socket

import pytest

from pitlm.core.errors import InputError
from pitlm.serve.web import address, bind, make_token


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
