"""One proxy for all tests with default settings; each test gets it reset."""

from __future__ import annotations

import pytest
from proxies import proxied
from scripted_models import Judge, Writer


@pytest.fixture(scope="session")
def _proxy():
    with proxied() as proxy:
        yield proxy


@pytest.fixture
def proxy(_proxy):
    _proxy.upstream.requests.clear()
    _proxy.upstream.cancelled = 0
    vars(_proxy.writer).update(vars(Writer()))
    vars(_proxy.judge).update(vars(Judge()))
    return _proxy
