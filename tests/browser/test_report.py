"""The report of a run in a real browser, opened as a file."""

from __future__ import annotations

import pytest
from page_checks import CONTRAST, HOSTILE

from pitlm.core.nouns import Prompt, Round, StopReason, Trace
from pitlm.report.pages import render
from pitlm.report.shape import BeforeAfter, Report

pytestmark = pytest.mark.browser


def improved(original, final):
    accepted = (Round(final, 1.0, True),) if final != original else ()
    return BeforeAfter(Trace(Prompt.of("Why?"), original, accepted, StopReason.ROUNDS), 1.0)


def test_changed_words_are_marked_and_hostile_ones_stay_text(new_page, tmp_path):
    examples = [improved("I think the lamp is red .", "The lamp is red ."), improved("as it was", "as it was")]
    examples += [improved(text, f"new {text}") for text in HOSTILE]
    file = tmp_path / "report.html"
    file.write_text(render(Report("a run", examples=examples)), encoding="utf-8")
    page = new_page(tmp_path.as_uri())
    page.goto(file.as_uri())
    rows = page.locator("#examples-body > tr")
    assert rows.count() == len(examples)
    assert rows.nth(0).locator("del").all_text_contents() == ["I think the"]
    assert rows.nth(0).locator("ins").all_text_contents() == ["The"]
    assert rows.nth(1).locator("del, ins").count() == 0
    for row, text in zip(rows.all()[2:], HOSTILE, strict=True):
        assert row.locator("td").nth(1).text_content() == text
        assert row.locator("td").nth(2).text_content() == f"new {text}"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for tag in ("del", "ins"):
            assert rows.nth(0).locator(tag).evaluate(CONTRAST) >= 4.5, (scheme, tag)  # WCAG 2, AA
    page.get_by_role("searchbox").fill("i think")
    assert rows.count() == 1
