"""The page of `pit serve` in a real browser, in front of scripted models and a scripted upstream."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import scripted_upstream
from page_checks import CONTRAST, HOSTILE
from PIL import Image
from playwright.sync_api import expect
from proxies import proxied

from pitlm.core.nouns import Answer
from pitlm.serve.app import make_app
from pitlm.serve.outcomes import Metrics
from pitlm.serve.settings import Settings

pytestmark = pytest.mark.browser

PICTURE = Path(__file__).parents[2] / "docs" / "try.png"


class Visitor:
    """A person in front of the page."""

    def __init__(self, page):
        self.page = page

    def open(self):
        self.page.goto("/")
        return self

    def ask(self, question="What is two and two?"):
        self.page.get_by_label("Your question").fill(question)
        self.page.locator("#status").evaluate("status => { status.textContent = '' }")  # clears the last status
        self.page.get_by_role("button", name="Ask and improve").click()
        return self

    def done(self):
        self.page.get_by_role("status").get_by_text("Done:").wait_for()
        return self

    def said(self, text):
        self.page.get_by_role("alert").get_by_text(text).wait_for()
        return self

    def text_of(self, locator, without=None):
        """The text without its additions (``ins``), or without its removals (``del``)."""
        return locator.evaluate(
            "(node, without) => [...node.childNodes].filter((n) => n.nodeName.toLowerCase() !== without)"
            ".map((n) => n.textContent).join('')",
            without,
        )


@pytest.fixture
def proxy():
    with proxied() as proxy:
        yield proxy


def root(proxy):
    return proxy.url.removesuffix("/v1")


def test_ask_and_see_how_the_answer_became_better(proxy, new_page):
    page = new_page(root(proxy))
    visitor = Visitor(page).open()
    expect(page.locator("#model")).to_have_value("chat", timeout=60_000)  # the upstream's first model
    visitor.ask().done()
    assert page.get_by_role("region", name="First answer").locator(".text").text_content() == scripted_upstream.TEXT
    final = page.get_by_role("region", name="Final answer")
    assert final.locator(".text").text_content() == scripted_upstream.TEXT + " Better Better"
    rounds = page.locator("#rounds > li")
    assert rounds.count() == 3
    for index, (mark, verdict) in enumerate(
        [
            ("✓ taken", "R_PIT finds this version better by 1.00, so it was taken."),
            ("✓ taken", "R_PIT finds this version better by 1.00, so it was taken."),
            ("not taken", "R_PIT finds this version no better (−1.00), so the version before was kept."),
        ]
    ):
        card = rounds.nth(index)
        assert card.locator("h3").text_content() == f"Round {index + 1}"
        assert (card.locator(".mark").text_content(), card.locator(".verdict").text_content()) == (mark, verdict)
        assert card.locator("ins").all_text_contents() == [" Better"]
        assert card.locator("del").count() == 0
    facts = final.locator("dl").text_content()
    assert "3, of which 2 improved the answer" in facts
    assert "the last version was not better, or not by enough." in facts
    assert "9 written, 30 read by the improver; 5 written, 7 read by chat" in facts  # three rounds of 3 and 10 tokens
    assert page.evaluate("document.activeElement.textContent") == "Final answer"
    asked = proxy.upstream.requests[-1]
    assert (asked["path"], b"pit" in asked["body"], "authorization" in asked["headers"]) == (
        "/v1/chat/completions",
        False,
        False,
    )


CHANGES = [
    ("The cat sat on the mat.", "The dog sat on a mat, and slept."),
    ("one two three four", "four three two one"),
    ("  leading\n\nlines \t kept ", "leading\nlines kept\n"),
    ("日本語を話します", "日本語は話せます"),
    ("same", "same"),
    ("a " * 2500, "b " * 2500),  # more cells than the table of differences may have
    ("\U0001f468\u200d\U0001f373 cooks", "\U0001f469\u200d\U0001f373 bakes"),
]


def test_what_is_marked_is_the_whole_difference(proxy, new_page):
    async def propose(request):
        return Answer(dict(CHANGES).get(request.reference, request.reference), 1, 1)

    proxy.writer.propose = propose
    page = new_page(root(proxy))
    visitor = Visitor(page).open()
    page.get_by_text("Improve your own answer instead").click()
    for before, after in CHANGES:
        page.get_by_label("The answer").fill(before)
        visitor.ask().done()
        marked = page.locator("#rounds .text").first
        assert visitor.text_of(marked, "ins") == before
        assert visitor.text_of(marked, "del") == after.strip()  # the loop strips proposals
        assert (page.locator("#rounds .mark").first.text_content() == "no change") is (before == after)
        if before.startswith("The cat"):
            assert marked.locator("del").all_text_contents() == ["cat", "the"]
            assert marked.locator("ins").all_text_contents() == ["dog", "a", ", and slept"]
            page.get_by_label("Mark what was").uncheck()
            assert marked.locator("del").first.is_hidden()
            assert marked.inner_text() == after
    assert [request["path"] for request in proxy.upstream.requests] == ["/v1/models"]  # no request to a model


def test_hostile_texts_stay_text(proxy, new_page, watched, monkeypatch):
    page = new_page(root(proxy))
    visitor = Visitor(page).open()
    expect(page.locator("#model")).not_to_have_value("", timeout=60_000)
    for index, question in enumerate(HOSTILE):
        answer = HOSTILE[index - 1]
        monkeypatch.setattr(scripted_upstream, "TEXT", answer)
        proxy.writer.suffix = " " + HOSTILE[index - 2] + " Better"
        visitor.ask(question).done()
        assert page.get_by_role("region", name="First answer").locator(".text").text_content() == answer
        rounds = page.locator("#rounds .text")
        assert visitor.text_of(rounds.first, "del") == answer + proxy.writer.suffix
        assert page.locator("main :is(script, img, svg, iframe, style, a, b, link)").count() == 0
        assert page.locator("#results form").count() == 0
        assert rounds.first.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
        assert question.replace("\0", "") == page.get_by_label("Your question").input_value().replace("\0", "")
    monkeypatch.setitem(
        scripted_upstream.ERRORS, "chat", (400, {"message": HOSTILE[1], "type": "x", "param": None, "code": None})
    )
    visitor.ask().said("onerror")
    assert page.locator("#problem > *").count() == 0
    assert [what for what in watched.seen if "status of 400" not in what] == []
    watched.seen.clear()


def test_the_policy_stops_what_gets_in_all_the_same(proxy, new_page, watched):
    page = new_page(root(proxy))

    def let_in(route):
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("<main>", "<main>" + "".join(HOSTILE[:5])))

    page.route(root(proxy) + "/", let_in)
    page.goto("/")
    assert page.locator("main img[onerror]").count() == 1  # the element is in the page
    while not watched.seen:
        page.wait_for_timeout(20)
    assert page.evaluate("try { document.body.innerHTML = '<b>'; 'taken' } catch (error) { error.name }") == "TypeError"
    assert watched.seen
    assert watched.seen == [what for what in watched.seen if what.startswith("console: ")]
    watched.seen.clear()


def test_a_token_is_asked_for_and_stays_in_the_page(new_page, watched):
    with proxied(token="door-key", upstream_key="sk-upstream", hosts=None) as proxy:
        page = new_page(root(proxy))
        sent = []
        page.on("request", lambda request: sent.append(request))
        visitor = Visitor(page).open()
        secret = page.get_by_label("Token of this server")
        visitor.ask()
        assert page.evaluate("document.activeElement.id") == "secret"  # the browser asks for the missing value
        assert proxy.upstream.requests == []
        secret.fill("wrong")
        page.get_by_label("Model that answers").fill("chat")
        visitor.ask().said("A bearer token is needed. (status 401)")
        assert page.evaluate("document.activeElement.id") == "secret"
        assert all("status of 401" in what for what in watched.seen)
        watched.seen.clear()
        secret.fill("door-key")
        visitor.ask().done()
        calls = [request for request in sent if "/v1/" in request.url]
        assert {r.all_headers().get("authorization") for r in calls} == {"Bearer wrong", "Bearer door-key"}
        assert not [request.url for request in sent if "door-key" in request.url]
        page.get_by_text("The same request from a command line").click()
        line = page.locator("pre").text_content()
        assert "door-key" not in line
        assert '-H "Authorization: Bearer $TOKEN"' in line
        stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
        assert "door-key" not in stored
        assert "door-key" not in page.content()
        page.reload()
        assert secret.input_value() == ""


def test_clients_own_keys_go_to_the_upstream(proxy, new_page):
    page = new_page(root(proxy))
    visitor = Visitor(page).open()
    page.get_by_label("API key").fill("sk-mine")
    page.get_by_label("Model that answers").fill("chat")
    visitor.ask().done()
    assert proxy.upstream.requests[-1]["headers"]["authorization"] == "Bearer sk-mine"


def test_what_fails_is_said_in_words(proxy, new_page, watched):
    page = new_page(root(proxy))
    visitor = Visitor(page).open()
    for model, said in [
        ("limited", "There is no answer: Slow down (status 429)"),
        ("broken", "There is no answer: Oops (status 500)"),
        ("cut", "(status 502)"),
        ("nonsense", "There is no answer: the reply is not JSON (status 200)"),
        ("tools", "There is no answer: the model's reply has no text."),
        ("", "Enter the name of the model that answers."),
    ]:
        page.get_by_label("Model that answers").fill(model)
        visitor.ask().said(said)
        assert page.locator("#results > *").count() == 0
    proxy.judge.failure = "the gap model is being started again"
    page.get_by_label("Model that answers").fill("chat")
    visitor.ask().said("The answer could not be improved: the gap model is being started again (status 503)")
    assert page.get_by_role("region", name="First answer").is_visible()  # the first answer stays
    page.context.set_offline(True)
    visitor.ask().said("There is no answer: the server does not answer. Is it still running?")
    page.context.set_offline(False)
    proxy.judge.failure = ""
    watched.seen.clear()  # the browser also reports the failure
    visitor.ask().done()
    assert page.get_by_role("alert").is_hidden()


def test_everything_can_be_done_with_the_keyboard(proxy, new_page):
    page = new_page(root(proxy))
    Visitor(page).open()
    expect(page.locator("#model")).not_to_have_value("", timeout=60_000)
    names = []
    for _ in range(6):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert names == ["question", "model", "Improve your own answer instead", "secret", "ask", names[-1]]
    page.get_by_label("Your question").focus()
    page.keyboard.type("Why?")
    page.keyboard.press("Control+Enter")
    Visitor(page).done()
    assert page.evaluate("document.activeElement.textContent") == "Final answer"


def test_stopping_ends_the_work_at_the_upstream_too(proxy, new_page, watched):
    page = new_page(root(proxy))
    visitor = Visitor(page).open()
    page.get_by_label("Model that answers").fill("stall")
    visitor.ask()
    page.get_by_role("status").get_by_text("Asking stall …").wait_for()
    while not proxy.upstream.requests:
        page.wait_for_timeout(20)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("status").get_by_text("Stopped.").wait_for()
    assert page.get_by_role("alert").is_hidden()
    while not proxy.upstream.cancelled:
        page.wait_for_timeout(20)
    assert proxy.upstream.cancelled == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(proxy, new_page, monkeypatch, scheme):
    monkeypatch.setattr(scripted_upstream, "TEXT", "word " * 200 + "unbroken" * 100)

    async def propose(request):
        return Answer("Better " + request.reference.replace("word", "term", 3), 5, 5)

    proxy.writer.propose = propose
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    page = new_page(root(proxy), **phone)
    Visitor(page).open()
    page.get_by_label("Model that answers").fill("chat")
    assert page.get_by_role("button", name="Ask and improve").bounding_box()["height"] >= 44
    page.get_by_label("Your question").fill("q " * 300)
    page.get_by_role("button", name="Ask and improve").tap()
    Visitor(page).done()
    assert page.evaluate("document.documentElement.scrollWidth <= 360")
    assert page.get_by_role("heading", name="Final answer").bounding_box()["y"] // 1 in range(740)  # scrolled into view
    for selector in (".quiet", "#ask", "#rounds ins", "#rounds del", ".taken .mark", ".left .mark", "dt", "summary"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector  # WCAG 2, AA


def test_without_an_upstream_the_answer_is_the_visitor_s(serve, new_page):
    from scripted_models import Judge, Writer

    url = serve(make_app(Settings(), Metrics(), None, improver=Writer(), scorer=Judge(likes=0)))
    page = new_page(url)
    page.goto("/")
    assert page.get_by_label("Model that answers").count() == page.get_by_label("API key").count() == 0
    page.get_by_label("Your question").fill("Why?")
    page.get_by_label("Answer to improve").fill("Because it's so.")
    page.get_by_role("button", name="Improve").click()
    Visitor(page).done()
    page.get_by_role("heading", name="Final answer: the first answer stands").wait_for()
    page.get_by_text("The same request from a command line").click()
    line = page.locator("pre").text_content()
    assert line.startswith(f"curl '{url}/v1/improve' -H")
    assert r"it'\''s so." in line


def test_without_models_the_page_says_so(serve, new_page):
    page = new_page(serve(make_app(Settings(), Metrics(), None, improver=None, scorer=None)))
    page.goto("/")
    assert page.get_by_text("there is nothing to try here").is_visible()
    assert page.locator("form").count() == 0


def test_the_names_that_assistive_technology_hears(proxy, new_page):
    page = new_page(root(proxy))
    visitor = Visitor(page).open()
    expect(page.locator("#model")).not_to_have_value("", timeout=60_000)
    visitor.ask().done()
    for role, name in [
        ("form", "Ask"),
        ("textbox", "Your question"),
        ("combobox", "Model that answers"),
        ("button", "Ask and improve"),
        ("region", "Final answer"),
        ("region", "First answer"),
        ("checkbox", "Mark what was added and removed"),
        ("button", "Copy the final answer"),
        ("heading", "Round 2"),
    ]:
        assert page.get_by_role(role, name=name).is_visible(), (role, name)


ANSWERS = [
    "There can be many reasons why dough does not rise. Perhaps the yeast was old. Try another recipe.",
    "There can be many reasons why dough does not rise. Most often the yeast was dead: stir a spoonful of it into lukewarm "
    "water with a pinch of sugar. If it does not foam within ten minutes, buy fresh yeast.",
    "Most often the yeast was dead: stir a spoonful of it into lukewarm water with a pinch of sugar. If it does not foam "
    "within ten minutes, buy fresh yeast. If it foams, the dough was only too cold: leave it in a warm place for two hours.",
    "Most often the yeast was dead. Leave the dough in a warm place for two hours.",
]


@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="make screenshots asks for it")
def test_the_picture_in_the_documents(proxy, new_page, monkeypatch):
    monkeypatch.setattr(scripted_upstream, "TEXT", ANSWERS[0])
    monkeypatch.setattr(scripted_upstream, "USAGE", {"prompt_tokens": 21, "completion_tokens": 22, "total_tokens": 43})

    complete = proxy.upstream.complete

    async def answer(*arguments):
        await asyncio.sleep(0.4)
        await complete(*arguments)

    async def propose(request):
        await asyncio.sleep(0.5)
        return Answer(ANSWERS[ANSWERS.index(request.reference) + 1], 58, 171)

    async def gap(item):
        return {1: 1.35, 2: 0.82, 3: -0.64}[ANSWERS.index(item.response)]

    proxy.upstream.complete, proxy.writer.propose, proxy.judge.gap = answer, propose, gap
    page = new_page(root(proxy), viewport={"width": 1080, "height": 1115})
    visitor = Visitor(page).open()
    page.get_by_label("Model that answers").fill("chat")
    visitor.ask("My dough did not rise at all. What went wrong?").done()
    page.screenshot(path=PICTURE)
    Image.open(PICTURE).convert("RGB").quantize(64).save(PICTURE, optimize=True)
    assert PICTURE.stat().st_size < 120_000
