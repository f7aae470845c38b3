"""A real headless Chromium, and a server in this process for the pages of pitlm."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import ExitStack

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chromium():
    """The browser. Without a browser the tests fail instead of skipping, because they run only on request."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, f"No browser found: install one of {', '.join(NAMES)}, or name one with CHROMIUM=/path/to/it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


class Watched:
    """Records what no page of ours may do."""

    def __init__(self):
        self.seen = []

    def watch(self, page, base_url):
        def dialog(opened):
            self.seen.append(f"a dialog: {opened.message}")
            opened.dismiss()

        def asked(request):
            ours = request.url.startswith((base_url, "data:"))
            if not ours and request.failure != "csp":  # a request that the policy stops has not left the browser
                self.seen.append(f"a request: {request.url}")

        page.on("dialog", dialog)
        page.on("pageerror", lambda error: self.seen.append(f"an error: {error}"))
        page.on(
            "console",
            lambda said: self.seen.append(f"console: {said.text}") if said.type in ("error", "warning") else None,
        )
        page.on("requestfinished", asked)
        page.on("requestfailed", asked)
        page.on("popup", lambda opened: self.seen.append(f"a window: {opened.url}"))


@pytest.fixture
def watched():
    """``seen`` has every dialog, script error, console message, foreign request and new window so far."""
    return Watched()


@pytest.fixture
def new_page(chromium, watched):
    """Opens a page in a new browser profile, which gets the further arguments. Nothing forbidden may happen
    until the test ends, unless the test removes it from ``watched.seen``."""
    with ExitStack() as stack:

        def make(base_url, **profile):
            context = chromium.new_context(base_url=base_url, **profile)
            context.set_default_timeout(600_000)
            stack.callback(context.close)
            page = context.new_page()
            watched.watch(page, base_url)
            return page

        yield make
    assert watched.seen == []


@pytest.fixture
def serve():
    """Serves an application on a free loopback port until the test ends; returns its base URL."""
    import uvicorn

    from pitlm.serve.web import bind

    with ExitStack() as stack:

        def start(app):
            listener = stack.enter_context(bind("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})

            def stop():
                server.should_exit = True
                thread.join(10)

            thread.start()  # the socket listens already, so the first request waits instead of failing
            stack.callback(stop)
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        yield start
