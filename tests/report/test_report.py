from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pitlm.core.equations import RELATIONS
from pitlm.core.nouns import Message, Prompt, Round, StopReason, Trace
from pitlm.core.verdicts import Verdict
from pitlm.evaluate.statistics import Interval, Tally
from pitlm.report.html import DASH, bounds, number, render, share, write
from pitlm.report.plots import curve_panels, gap_panel, rate_panels, round_panel
from pitlm.report.shape import (
    HEALTH_KEYS,
    BeforeAfter,
    Curve,
    DifferenceLine,
    HealthLine,
    Report,
    RoundQuality,
    SystemLine,
    health_line,
)

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "{{7*7}}{% raw %}",
    "line\u2028separator\u2029",
    "<!-- <script> ]]> -->",
    "$\\frac{1}{0}$ & \"quotes' \x00\x1b",
    "half a pair \ud83d",
    "_underscore",
]


def example(text: str = "an answer", verdict: Verdict | None = Verdict.WIN) -> BeforeAfter:
    trace = Trace(
        prompt=Prompt.of(f"prompt {text}"),
        original=f"original {text}",
        rounds=(Round(f"better {text}", 1.25, True), Round(f"worse {text}", -0.5, False)),
        stop_reason=StopReason.ACCEPTED_NONE,
    )
    return BeforeAfter(trace, gap=1.25, verdict=verdict, scores=(2.0, 1.0), system=f"system {text}")


def full_report(text: str = "plain") -> Report:
    interval = Interval(0.2, 0.1, 0.3)
    return Report(
        title=f"title {text}",
        settings={f"setting {text}": f"value {text}"},
        headline=[f"headline {text}"],
        systems=[
            SystemLine("original", 10, quality=Interval(0.01, -0.1, 0.1), generated_tokens=30.0),
            SystemLine(
                f"pit {text}",
                10,
                tally=Tally(5, 1, 3, 1, 2),
                delta=interval,
                win_rate=interval,
                quality=interval,
                copy_rate=0.125,
                length_change_tokens=-3.0,
                length_change_share=-0.05,
                generated_tokens=61.5,
                judge=f"judge {text}",
            ),
        ],
        differences=[DifferenceLine(f"pit {text}", f"refine {text}", interval, f"judge {text}")],
        curves=[Curve(f"stage {text}", [1, 2, 3], [0.0, 0.5, 0.6], [0.0, 2.0, 3.0], [0.1, None, 0.3], f"probe {text}")],
        quality_by_round=RoundQuality(f"quality {text}", {f"pit {text}": [interval, interval]}),
        gaps={f"group {text}": [-1.0, 0.5, 2.0, math.nan]},
        health=[
            *(health_line(key, 0.5) for key in HEALTH_KEYS),
            HealthLine(f"measure {text}", 0.5, interval, f"explanation {text}"),
        ],
        examples=[example(text), example("other", Verdict.LOSS)],
        notes=[f"note {text}"],
        quality_name=f"utility {text}",
    )


class Page(HTMLParser):
    """Collects elements, attributes, scripts and text, and checks nesting."""

    VOID = ("meta", "input", "link", "br", "img", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data

    @property
    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.elements if "id" in attributes}


@pytest.fixture(scope="module")
def plain() -> Page:
    return Page(render(full_report()))


SECTIONS = {"systems", "training", "quality", "health", "examples", "notes"}


def test_page_is_well_formed_and_complete(plain: Page) -> None:
    page = plain
    assert page.open == []
    assert page.ids >= SECTIONS
    assert "missing" not in page.ids
    for text in ("title plain", "value plain", "headline plain", "note plain", "explanation plain", "probe plain"):
        assert text in page.text
    # Numbers of the hand-made report, in the units of the page.
    for text in ("+20.0%", "[+10.0%, +30.0%]", "12.5%", "\N{MINUS SIGN}3.0", "\N{MINUS SIGN}5.0%", "61.5", "yes"):
        assert text in page.text
    assert sum(tag == "svg" for tag, _ in page.elements) == 3 + 1 + 1 + 2


@pytest.mark.parametrize(
    ("change", "section", "word"),
    [
        ({"systems": (), "differences": ()}, "systems", "comparison of systems"),
        ({"curves": ()}, "training", "reinforcement learning"),
        ({"curves": [Curve("s", [1], [None])]}, "training", "reinforcement learning"),
        ({"quality_by_round": None, "gaps": {}}, "quality", "quality by round, distribution of gaps"),
        ({"gaps": {"empty": []}}, None, "distribution of gaps"),
        ({"health": ()}, "health", "health of the gap model"),
        ({"examples": ()}, "examples", "answers before and after"),
        ({"notes": ()}, "notes", None),
        ({"settings": {}}, "settings", None),
    ],
)
def test_a_missing_part_disappears_and_is_named(change: dict, section: str | None, word: str | None) -> None:
    page = Page(render(replace(full_report(), **change)))
    if section is not None:
        assert section not in page.ids
        assert f"#{section}" not in {attributes.get("href") for _, attributes in page.elements}
    assert (f"Not measured in this run: {word}." in page.text) if word else ("missing" not in page.ids)


def test_an_empty_report_renders_without_script() -> None:
    page = Page(render(Report("nothing yet")))
    assert not page.ids & SECTIONS
    assert page.scripts == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, plain: Page) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        html = render(full_report(text))
    page = Page(html)
    assert page.open == []
    assert [tag for tag, _ in page.elements if tag in ("script", "img")] == ["script", "script"]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.scripts[1] == plain.scripts[1]
    block = page.scripts[0]
    assert not re.search(r"[<>&\u2028\u2029]", block)
    row = json.loads(block)[0]
    assert row["prompt"] == f"prompt {text}"
    assert row["original"] == f"original {text}"
    assert row["final"] == f"better {text}"
    assert [r["proposal"] for r in row["rounds"]] == [f"better {text}", f"worse {text}"]


def test_template_syntax_in_text_is_not_run() -> None:
    assert "title {{7*7}}" in Page(render(Report("title {{7*7}}"))).text


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = render(full_report())
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "audio", "video", "form"}
    for _, attributes in page.elements:
        assert "src" not in attributes
        for name in ("href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_the_policy_allows_exactly_the_script(plain: Page) -> None:
    digest = base64.b64encode(hashlib.sha256(plain.scripts[1].encode()).digest()).decode()
    assert any(f"script-src 'sha256-{digest}'" in (a.get("content") or "") for _, a in plain.elements)
    assert "innerHTML" not in plain.scripts[1]


def test_internal_references_resolve_and_ids_are_unique() -> None:
    report = full_report()
    report = replace(report, curves=[*report.curves, replace(report.curves[0], stage="stage 1")])
    html = render(report)
    page = Page(html)
    all_ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(all_ids) == len(set(all_ids))
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", html))
    assert used
    assert used <= set(all_ids)


def test_two_renders_are_equal() -> None:
    assert render(full_report()) == render(full_report())


def test_examples_carry_what_the_table_shows() -> None:
    turns = (Message("system", "be kind"), Message("user", "hi"), Message("assistant", "yes?"), Message("user", "why"))
    kept = Trace(Prompt(turns), "same", (Round("same", 0.0, False),), StopReason.CONVERGED)
    report = Report("t", examples=[example(), BeforeAfter(kept, gap=math.nan, verdict=Verdict.UNPARSABLE)])
    page = Page(render(report))
    first, second = json.loads(page.scripts[0])
    assert (first["outcome"], first["gap"], first["stop"]) == ("won", "+1.25", "accepted-none")
    assert first["scores"] == "1.00 → 2.00"  # original, then final
    assert [r["accepted"] for r in first["rounds"]] == [True, False]
    assert second["prompt"] == "system: be kind\n\nuser: hi\n\nassistant: yes?\n\nuser: why"
    assert (second["unchanged"], second["gap"], second["scores"]) == (True, DASH, "")
    assert second["outcome"] == "unparsable"
    options = [attributes["value"] for tag, attributes in page.elements if tag == "option"]
    assert options == ["", "won", "unparsable"]


def test_numbers_for_reading() -> None:
    assert [number(v) for v in (None, math.nan, math.inf, 1.234)] == [DASH, DASH, DASH, "1.23"]
    assert number(-0.001, signed=True) == "0.00"
    assert (share(0.0721, signed=True), share(-0.5)) == ("+7.2%", "\N{MINUS SIGN}50.0%")
    assert bounds(Interval(0.5, 0.25, 0.75), "number") == "[0.25, 0.75]"
    assert bounds(Interval(math.nan, math.nan, math.nan)) == bounds(None) == ""


def test_plots_leave_out_what_is_not_there() -> None:
    assert curve_panels(Curve("s", [1, 2], kl=[1.0, math.nan]))[0].title.startswith("KL")
    assert gap_panel({}) is None
    assert round_panel(RoundQuality("q", {"a": [Interval(math.nan, math.nan, math.nan)]})) is None
    assert rate_panels([SystemLine("original", 3)]) == []
    with pytest.raises(ValueError, match="shorter"):
        curve_panels(Curve("s", [1, 2], [0.1]))


def test_gaps_that_are_all_equal_can_be_drawn() -> None:
    panel = gap_panel({"copies": [0.0] * 5})
    assert panel is not None
    assert "copies: 0% above 0" in panel.svg


def test_every_health_key_has_an_explanation_and_unknown_ones_fail() -> None:
    assert HEALTH_KEYS[:5] == ("wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw")  # the five pairs of Eq. 2
    assert all(health_line(key, 0.5).explanation for key in HEALTH_KEYS)
    with pytest.raises(KeyError):
        health_line("ww>ll", 0.5)


def test_write_puts_the_page_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report = full_report("half a pair \ud83d")
    write(report, path)
    assert path.read_text(encoding="utf-8") == render(report)


def test_health_keys_begin_with_the_relations_of_the_equations() -> None:
    assert HEALTH_KEYS[:5] == RELATIONS
