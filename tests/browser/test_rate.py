"""`pit rate` in a real browser."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest
from page_checks import CONTRAST, HOSTILE
from PIL import Image

from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Verdict
from pitlm.judge.votes import Votes, ballots
from pitlm.serve.rating import rating_app

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SYSTEMS = ("zebra-17b", "walrus-3b")
COMPARISONS = [
    Comparison(Prompt.of(f"question {i}"), f"from the pen of z. {i}", f"w. wrote this {i}", f"secret-item-{i}", SYSTEMS)
    for i in range(4)
]


class Rater:
    """A person in front of the page."""

    def __init__(self, page, name="ada"):
        self.page, self.name = page, name

    def open(self, path="/", start=True):
        self.page.goto(path)
        if start:
            self.page.get_by_label("Your name").fill(self.name)
            self.page.get_by_role("button", name="Start").click()
            self.ready()
        return self

    def ready(self):
        """Wait until the page accepts a choice: it ignores choices in the first moments of a pair."""
        self.page.locator('[data-choice="left"][aria-disabled="false"]').wait_for()
        return self

    def press(self, key):
        """Press a key, and wait until the page has handled it."""
        with self.page.expect_response("**/api/**"):
            self.page.keyboard.press(key)

    def texts(self):
        return self.page.locator("#left").text_content(), self.page.locator("#right").text_content()

    def count(self, text):
        self.page.locator("#count", has_text=text).wait_for()
        return self


@pytest.fixture
def votes(tmp_path):
    return Votes(tmp_path / "votes.sqlite")


@pytest.fixture
def app_url(votes, serve):
    return serve(rating_app(COMPARISONS, votes))


def test_voting_with_the_keyboard_to_the_end(votes, app_url, new_page):
    rater = Rater(new_page(app_url)).open().count("0 of 4 rated, 4 left")
    wanted = []
    for done, key in enumerate(["1", "ArrowRight", "2", "ArrowLeft"], start=1):
        left, _ = rater.ready().texts()
        side = {"1": Verdict.WIN, "ArrowLeft": Verdict.WIN, "2": Verdict.TIE, "ArrowRight": Verdict.LOSS}[key]
        wanted.append((left.split()[-1], side if "pen of z." in left else side.swap()))
        rater.press(key)
        rater.count(f"{done} of 4 rated, {4 - done} left")
        assert rater.page.locator("#progress").evaluate("bar => bar.value / bar.max") == done / 4
    rater.page.get_by_text("You rated all 4.").wait_for()
    assert rater.page.locator("#pair").is_hidden()
    assert rater.page.locator("#choices").is_hidden()
    rows = votes.rows()
    assert [(row.item.removeprefix("secret-item-"), row.verdict) for row in rows] == wanted
    assert {row.judge for row in rows} == {"ada"}


def test_undo_brings_the_pair_back_and_the_new_vote_counts(votes, app_url, new_page):
    rater = Rater(new_page(app_url)).open()
    before = rater.texts()
    rater.press("1")
    rater.count("1 of 4").ready()
    assert rater.texts() != before
    with rater.page.expect_response("**/api/ballots/**"):
        rater.page.keyboard.press("z")
    rater.count("0 of 4").ready()
    assert rater.texts() == before
    assert votes.rows() == []
    rater.press("3")
    rater.count("1 of 4")
    (row,) = votes.rows()
    assert row.verdict is (Verdict.LOSS if "pen of z." in before[0] else Verdict.WIN)
    with rater.page.expect_response("**/api/undo"):
        rater.ready().page.get_by_role("button", name="Undo").click()
    rater.count("0 of 4").ready()
    rater.press("z")
    rater.page.get_by_text("There is no vote to take back.").wait_for()


def test_undo_works_from_the_last_page_too(votes, serve, new_page):
    rater = Rater(new_page(serve(rating_app(COMPARISONS[:1], votes)))).open()
    rater.press("2")
    rater.page.get_by_text("You rated all 1.").wait_for()
    rater.page.keyboard.press("z")
    rater.count("0 of 1 rated, 1 left").ready()


def test_two_raters_at_once_each_with_their_own_order(votes, app_url, new_page):
    ada, bob = Rater(new_page(app_url)).open(), Rater(new_page(app_url), "bob").open()
    seen = {}
    for rater, key in ((ada, "1"), (bob, "3"), (ada, "1"), (bob, "3")):
        seen.setdefault(rater.name, []).append(rater.ready().texts()[0].split()[-1])
        rater.press(key)
        rater.count(f"{len(seen[rater.name])} of 4")
    rows = votes.rows()
    assert [row.judge for row in rows] == ["ada", "bob", "ada", "bob"]
    for name, items in seen.items():
        expected = [b.comparison.item for b in ballots(COMPARISONS, name, votes.seed)][:2]
        assert [f"secret-item-{item}" for item in items] == expected
        assert [row.item for row in rows if row.judge == name] == expected


def test_a_rater_goes_on_where_they_stopped(votes, app_url, new_page):
    page = new_page(app_url)
    rater = Rater(page).open()
    rater.press("1")
    rater.count("1 of 4").ready()
    here = rater.texts()
    rater.open(start=False).count("1 of 4").ready()  # the page remembers the name
    assert rater.texts() == here
    elsewhere = Rater(new_page(app_url)).open().count("1 of 4")  # another device, the same name
    assert elsewhere.texts() == here
    page.get_by_role("button", name="Not you?").click()
    rater.name = "bob"
    page.get_by_label("Your name").fill("bob")
    page.get_by_role("button", name="Start").click()
    rater.count("0 of 4")


def test_skipping_stores_nothing_and_the_pair_can_be_had_again(votes, app_url, new_page):
    rater = Rater(new_page(app_url)).open()
    skipped = rater.texts()
    rater.press("s")
    for done in (1, 2, 3):
        assert rater.ready().texts() != skipped
        rater.press("2")
        rater.count(f"{done} of 4")
    rater.page.get_by_text("You rated 3 of 4 and skipped 1.").wait_for()
    assert len(votes.rows()) == 3
    rater.page.get_by_role("button", name="Show the skipped pairs").click()
    assert rater.ready().texts() == skipped


def test_the_page_takes_no_choice_while_the_next_pair_is_on_its_way(votes, app_url, new_page):
    rater = Rater(new_page(app_url)).open()
    asked = []
    rater.page.route("**/api/ballots/**", lambda route: asked.append(route), times=1)  # hold the next pair back
    rater.page.keyboard.press("s")
    rater.page.locator('[data-choice="left"][aria-disabled="true"]').wait_for()
    rater.page.wait_for_timeout(400)  # longer than the pause of a new pair
    assert rater.page.locator('[data-choice="left"]').get_attribute("aria-disabled") == "true"
    (held,) = asked
    held.continue_()
    rater.ready().press("2")
    rater.count("1 of 4")
    assert len(votes.rows()) == 1


def test_presses_that_nobody_can_have_meant_are_no_votes(votes, app_url, new_page):
    rater = Rater(new_page(app_url)).open()
    page = rater.page
    page.get_by_role("button", name="A is better").dblclick()  # the second click falls on a pair that nobody has read
    rater.count("1 of 4").ready()
    for _ in range(3):
        page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', { key: '1', repeat: true }))")
    page.keyboard.press("Control+1")
    page.get_by_label("Keys").uncheck()
    page.keyboard.press("1")
    page.get_by_label("Keys").check()
    rater.press("2")
    rater.count("2 of 4")
    assert len(votes.rows()) == 2


def test_hostile_answers_stay_text(votes, serve, new_page, watched):
    comparisons = [
        Comparison(Prompt.of(text), text, HOSTILE[i - 1], f"i{i}", SYSTEMS) for i, text in enumerate(HOSTILE)
    ]
    rater = Rater(new_page(serve(rating_app(comparisons, votes))), "<img src=x onerror=alert('name')>").open()
    page = rater.page
    elements = page.evaluate("document.querySelectorAll('*').length")
    seen = set()
    for done in range(1, len(HOSTILE) + 1):
        left, right = rater.ready().texts()
        assert {left, right} <= set(HOSTILE)
        assert page.locator("#turns .text").text_content() in (left, right)
        seen |= {left, right}
        assert page.evaluate("document.querySelectorAll('*').length") == elements
        assert page.locator("main :is(script, img, svg, iframe, style, a, b, link)").count() == 0
        # An unclosed override must not reverse the text after it.
        assert page.locator("#b").evaluate("node => getComputedStyle(node.nextElementSibling).unicodeBidi") == "isolate"
        rater.press("2")
        rater.count(f"{done} of {len(HOSTILE)}")
    assert seen == set(HOSTILE)
    assert watched.seen == []


def test_the_policy_stops_what_gets_in_all_the_same(app_url, new_page, watched):
    """The second wall: even if a mistake of ours turns answers into elements, in the page or the script, nothing
    runs."""
    page = new_page(app_url)

    def let_in(route):
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("<main>", "<main>" + "".join(HOSTILE[:5])))

    page.route(app_url + "/", let_in)
    Rater(page).open()
    assert page.locator("main img[onerror]").count() == 1  # the element is in the page
    page.locator("main svg a").evaluate("link => link.dispatchEvent(new MouseEvent('click', { bubbles: true }))")
    words = ("inline script", "event handler", "stylesheet", "TrustedHTML")
    while not all(any(word in what for what in watched.seen) for word in words[:3]):
        page.wait_for_timeout(20)
    assert page.evaluate("try { document.body.innerHTML = '<b>'; 'taken' } catch (error) { error.name }") == "TypeError"
    complaints = [what for what in watched.seen if what.startswith("console: ")]
    assert watched.seen == complaints  # no dialog, no foreign request
    for word in words:
        assert any(word in complaint for complaint in complaints), (word, complaints)
    watched.seen.clear()


def test_nothing_that_reaches_the_browser_names_a_system(app_url, new_page):
    page = new_page(app_url)
    served = []
    page.on("response", lambda answer: served.append(answer))
    rater = Rater(page).open()
    for done in (1, 2, 3, 4):
        rater.ready().press("1")
        rater.count(f"{done} of 4")
    page.get_by_text("You rated all 4.").wait_for()
    rater.press("z")
    rater.ready()
    assert len(served) >= 12
    for answer in served:
        text = (answer.text() + str(answer.all_headers())).lower()
        assert not [word for word in (*SYSTEMS, "secret-item", "swapped") if word in text]
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert not [word for word in (*SYSTEMS, "secret-item") if word in stored]


def test_the_token_in_the_address_opens_the_page_and_leaves_the_address(votes, serve, new_page, watched):
    url = serve(rating_app(COMPARISONS, votes, token="the-right-token"))
    stranger = new_page(url)
    for path in ("/", "/?token=the-wrong-token"):
        assert stranger.goto(path).status == 403
        assert "Open the whole address" in stranger.content()
    assert watched.seen.count(
        "console: Failed to load resource: the server responded with a status of 403 (Forbidden)"
    ) == len(watched.seen)
    stranger.context.close()  # the console can be later than the page
    watched.seen.clear()
    rater = Rater(new_page(url)).open("/?token=the-right-token")
    assert "token" not in rater.page.url
    assert rater.page.evaluate("document.cookie") == ""
    rater.press("1")
    rater.count("1 of 4")
    rater.open(start=False).count("1 of 4")  # from here on the cookie opens the page
    assert len(votes.rows()) == 1


def test_a_server_that_is_gone_is_said_and_the_vote_is_not_lost_in_silence(votes, app_url, new_page, watched):
    rater = Rater(new_page(app_url)).open()
    here = rater.texts()
    rater.page.context.set_offline(True)
    rater.page.keyboard.press("1")
    rater.page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    assert rater.texts() == here
    watched.seen.clear()  # the browser also reports that it is offline
    rater.page.context.set_offline(False)
    rater.press("1")
    rater.count("1 of 4")
    rater.ready()
    assert rater.page.get_by_role("alert").is_hidden()
    assert len(votes.rows()) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(votes, serve, new_page, scheme):
    long = [Comparison(Prompt.of("q " * 300), "word " * 400, "unbroken" * 100, "i", SYSTEMS)]
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    rater = Rater(new_page(serve(rating_app(long, votes)), **phone)).open()
    page = rater.page
    assert page.evaluate("document.documentElement.scrollWidth <= 360")
    boxes = [box.bounding_box() for box in page.locator("[data-choice]").all()]
    assert all(
        box["height"] >= 44 and box["y"] + box["height"] <= 740 for box in boxes
    )  # visible, however long the text is
    assert page.locator("#a").bounding_box()["y"] < page.locator("#b").bounding_box()["y"]
    for selector in ("#left", "[data-choice=left]", "#count", "#status", "#undo"):
        assert page.locator(selector).evaluate(CONTRAST) >= 4.5, selector  # WCAG 2, AA
    page.get_by_role("button", name="B is better").tap()
    page.get_by_text("You rated all 1.").wait_for()


def test_the_names_that_assistive_technology_hears(app_url, new_page):
    page = Rater(new_page(app_url)).open().page
    for role, name in [
        ("button", "A is better"),
        ("button", "About equal"),
        ("button", "B is better"),
        ("button", "Skip"),
        ("button", "Undo"),
        ("progressbar", "0 of 4 rated, 4 left"),
        ("region", "Conversation"),
        ("region", "Answer A"),
        ("region", "Answer B"),
        ("heading", "Which answer is better?"),
    ]:
        assert page.get_by_role(role, name=name).is_visible(), (role, name)
    assert page.evaluate("document.activeElement.id") == "asked"


SHOWN = Comparison(
    Prompt.of(
        [
            {"role": "user", "content": "I want to bake bread for the first time. What do I need?"},
            {"role": "assistant", "content": "Flour, water, salt and yeast. A heavy pot with a lid helps."},
            {"role": "user", "content": "My dough did not rise at all. What went wrong?"},
        ]
    ),
    "Most often the yeast was dead or the water too hot: above 50 °C it dies. Stir a spoonful of yeast into lukewarm water "
    "with a pinch of sugar. If it does not foam within ten minutes, buy fresh yeast.\n\nIf it foams, the dough was only too "
    "cold. Leave it covered in a warm place for two hours.",
    "There can be many reasons why dough does not rise. Baking is a science as well as an art, and practice is important. "
    "Perhaps try another recipe.",
    "bread",
    SYSTEMS,
)


@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="make screenshots asks for it")
def test_the_picture_in_the_documents(votes, serve, new_page):
    comparisons = [SHOWN, *(Comparison(Prompt.of(f"q {i}"), "a", "b", f"i{i}", SYSTEMS) for i in range(39))]
    votes.seed = next(str(seed) for seed in count() if ballots(comparisons, "ada", str(seed))[13].comparison is SHOWN)
    for ballot in ballots(comparisons, "ada", votes.seed)[:13]:
        votes.add(ballot, "ada", Verdict.TIE)
    page = Rater(new_page(serve(rating_app(comparisons, votes)), viewport={"width": 1000, "height": 676})).open().page
    page.get_by_text("Most often the yeast").wait_for()
    picture = ROOT / "docs" / "rate.png"
    page.screenshot(path=picture)
    Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)
    assert picture.stat().st_size < 150_000
