"""The page of `pit evaluate --html` in a real browser, opened as a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from page_checks import CONTRAST, HOSTILE
from PIL import Image

from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.summary import summarise
from pitlm.io.visible import visible
from pitlm.report.pages import leaderboard_page

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]


def rows(names, items=120):
    """Later systems are better, and longer."""
    generator = np.random.default_rng(1)
    made = []
    for place, name in enumerate(names):
        for item in range(items):
            length = int(generator.normal(900 + 90 * place, 150))
            p = 0.25 + 0.5 * place / len(names) + 0.2 * np.tanh((length - 1100) / 300)
            verdict = Verdict.WIN if generator.random() < p else Verdict.LOSS
            made.append(VerdictRow(f"{item}", name, "baseline", verdict, judge="the judge", lengths=(length, 1100)))
    return made


def opened(new_page, tmp_path, given, **how):
    file = tmp_path / "leaderboard.html"
    file.write_text(leaderboard_page(summarise(given, resamples=100)), encoding="utf-8")
    page = new_page(tmp_path.as_uri(), **how)
    page.goto(file.as_uri())
    return page


def test_hostile_names_stay_text_and_colours_can_be_read(new_page, tmp_path):
    page = opened(new_page, tmp_path, rows([*HOSTILE, "good"]))
    shown = page.locator("section table").first.locator("tbody th").all_text_contents()
    assert sorted(shown) == sorted(map(visible, [*HOSTILE, "good"]))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for kind in ("up", "down"):
            cell = page.locator(f".matrix td.{kind}").first
            assert cell.evaluate(CONTRAST) >= 4.5, (scheme, kind)  # WCAG 2, AA


@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_itself_never_scrolls_sideways(new_page, tmp_path, width):
    page = opened(
        new_page, tmp_path, rows([f"system {n}" for n in range(30)], 40), viewport={"width": width, "height": 800}
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="make screenshots asks for it")
def test_the_picture_in_the_documents(new_page, tmp_path):
    names = [f"model {letter}" for letter in "ABCDEF"]
    page = opened(new_page, tmp_path, rows(names, 400), viewport={"width": 1000, "height": 1300})
    picture = ROOT / "docs" / "leaderboard.png"
    page.screenshot(path=picture)
    Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)
    assert picture.stat().st_size < 150_000
