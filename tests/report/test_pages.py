from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitlm.core.equations import RELATIONS
from pitlm.core.nouns import Message, Prompt, Round, StopReason, Trace
from pitlm.core.verdicts import Verdict, VerdictRow
from pitlm.evaluate.answer_figures import AnswerFigures
from pitlm.evaluate.statistics import Interval
from pitlm.evaluate.summary import Summary, summarise
from pitlm.report.pages import DASH, bounds, changed_parts, leaderboard_page, number, render, share
from pitlm.report.plots import curve_panels, gap_panel, rate_panels, round_panel
from pitlm.report.shape import HEALTH, BeforeAfter, Report, health_figures

SHARE = {"estimate": 0.5, "low": 0.25, "high": 0.75, "n": 8}
MEASURED = {
    "order": dict.fromkeys(RELATIONS, SHARE),
    **dict.fromkeys(("held_out_pairs", "held_out_pairs_reward", "held_out_pairs_floor"), SHARE),
    **dict.fromkeys(("held_out_pairs_longer", "fresh_pairs"), SHARE),
    **dict.fromkeys(("antisymmetry", "equal_spread", "gap_spread", "length_correlation"), -0.25),
}
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


def row(system: str, judge: str, item: int, verdict: Verdict, scores: tuple[float, float] | None = None) -> VerdictRow:
    return VerdictRow(f"{item:05d}", system, "original", verdict, scores, judge=judge)


def example(text: str = "an answer", verdict: Verdict = Verdict.WIN) -> BeforeAfter:
    trace = Trace(
        prompt=Prompt((Message("user", f"prompt {text}"),)),
        original=f"original {text}",
        rounds=(Round(f"better {text}", 1.25, True), Round(f"worse {text}", -0.5, False)),
        stop_reason=StopReason.ACCEPTED_NONE,
    )
    return BeforeAfter(trace, gap=1.25, row=row(f"system {text}", "a judge", 0, verdict, (2.0, 1.0)))


def full_summary(text: str = "plain", judges: tuple[str, ...] = ()) -> Summary:
    """Ten items: pit wins 5, ties 1, loses 3, is inconsistent on 1; refine wins 2 and loses 8."""
    verdicts = [Verdict.WIN] * 5 + [Verdict.TIE] + [Verdict.LOSS] * 3 + [Verdict.INCONSISTENT]
    rows = []
    for judge in judges or (f"utility {text}",):
        for item, verdict in enumerate(verdicts):
            scores = {Verdict.WIN: (2.0, 1.0), Verdict.LOSS: (0.0, 1.0)}.get(verdict, (1.0, 1.0))
            rows.append(row(f"pit {text}", judge, item, verdict, scores))
            lost = item >= 2
            rows.append(
                row(f"refine {text}", judge, item, Verdict.LOSS if lost else Verdict.WIN, (0.0 if lost else 2.0, 1.0))
            )
    criteria = {f"criterion {text}": 0.5}
    known = {
        "original": AnswerFigures(1.0, 60.0, 0.0, 0.0, criteria, 12.3),
        f"pit {text}": AnswerFigures(0.125, 57.0, 61.5, 90.0, criteria, 23.4),
        f"refine {text}": AnswerFigures(0.0, 60.0, 100.0, 90.0, criteria, 34.5),
    }
    return summarise(rows, answered=known, rank=None, resamples=20)


def full_report(text: str = "plain") -> Report:
    interval = Interval(0.2, 0.1, 0.3)
    return Report(
        title=f"title {text}",
        settings={f"setting {text}": f"value {text}"},
        headline=[f"headline {text}"],
        summary=full_summary(text),
        judges={f"utility {text}": interval},
        compared=[(f"pit {text}", f"refine {text}")],
        curves={
            f"stage {text}": {
                "reward": [(1, 0.0), (2, 0.5), (3, 0.6)],
                f"probe {text}": [(1, 0.1), (2, math.nan), (3, 0.3)],
                "KL": [(1, 0.0), (2, 2.0), (3, 3.0)],
            }
        },
        quality_by_round={f"quality {text}": {f"pit {text}": [interval, interval]}},
        gaps={f"group {text}": [-1.0, 0.5, 2.0, math.nan]},
        health={**health_figures(MEASURED), "fresh_pairs": interval},
        examples=[example(text), example("other", Verdict.LOSS)],
        trends=[f"trend {text}"],
        notes=[f"note {text}"],
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
    words = ("title", "value", "headline", "trend", "note", "probe", "pit", "refine", "Mean utility")
    for word in words:
        assert f"{word} plain" in page.text
    for name, explanation in HEALTH.values():
        assert name in page.text
        assert explanation in page.text
    # Numbers of the hand-made report, in the units of the page: Delta (5 - 3) / 10, -6 / 10 and their difference; mean
    # quality 12 / 10, and the gain of 2 / 10 for 61.5 tokens; length 57 after 60.
    for text in ("+20.0%", "\N{MINUS SIGN}60.0%", "+80.0%", "12.5%", "\N{MINUS SIGN}3.0", "\N{MINUS SIGN}5.0%"):
        assert text in page.text
    for text in (
        "1.20",
        "+0.33",
        "61.5",
        "criterion plain",
        "23.4",
        "yes",
        "20.0%[10.0%, 30.0%]",
        "\N{MINUS SIGN}0.25",
    ):
        assert text in page.text
    assert sum(tag == "svg" for tag, _ in page.elements) == 3 + 1 + 1 + 2


@pytest.mark.parametrize(
    ("change", "section", "word"),
    [
        ({"summary": None, "judges": {}}, "systems", "comparison of systems"),
        ({"curves": {}}, "training", "reinforcement learning"),
        ({"curves": {"s": {"reward": [(1, math.nan)]}}}, "training", "reinforcement learning"),
        ({"quality_by_round": {}, "gaps": {}}, "quality", "quality by round, distribution of gaps"),
        ({"gaps": {"empty": []}}, None, "distribution of gaps"),
        ({"health": {}}, "health", "health of the gap model"),
        ({"examples": ()}, "examples", "answers before and after"),
        ({"notes": (), "trends": ()}, "notes", None),
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
    assert "".join(part for part, _ in row["before"]) == row["original"]
    assert "".join(part for part, _ in row["after"]) == row["final"]


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
    report = replace(report, curves={**report.curves, "stage 1": report.curves["stage plain"]})
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
    report = Report("t", examples=[example(), BeforeAfter(kept, math.nan, row("s", "j", 0, Verdict.UNPARSABLE))])
    page = Page(render(report))
    first, second = json.loads(page.scripts[0])
    assert (first["outcome"], first["gap"], first["stop"]) == ("win", "+1.25", "accepted-none")
    assert first["scores"] == "1.00 → 2.00"  # original, then final
    assert [r["accepted"] for r in first["rounds"]] == [True, False]
    assert second["prompt"] == "system: be kind\n\nuser: hi\n\nassistant: yes?\n\nuser: why"
    assert (second["unchanged"], second["gap"], second["scores"]) == (True, DASH, "")
    assert second["outcome"] == "unparsable"
    options = [attributes["value"] for tag, attributes in page.elements if tag == "option"]
    assert options == ["", "win", "unparsable"]


def test_changed_words_are_marked() -> None:
    before, after = changed_parts("I think the lamp costs nine .", "The lamp costs\nnine .")
    assert before == [("I think the", True), (" lamp costs", False), (" ", True), ("nine .", False)]
    assert after == [("The", True), (" lamp costs", False), ("\n", True), ("nine .", False)]
    assert changed_parts("same text", "same text") == ([("same text", False)], [("same text", False)])


@given(st.text(max_size=60), st.text(max_size=60))
def test_parts_of_two_texts_are_the_texts(before: str, after: str) -> None:
    own, other = changed_parts(before, after)
    assert ("".join(text for text, _ in own), "".join(text for text, _ in other)) == (before, after)
    assert [text for text, changed in own if not changed] == [text for text, changed in other if not changed]


def test_numbers_for_reading() -> None:
    assert [number(v) for v in (None, math.nan, math.inf, 1.234)] == [DASH, DASH, DASH, "1.23"]
    assert number(-0.001, signed=True) == "0.00"
    assert (share(0.0721, signed=True), share(-0.5)) == ("+7.2%", "\N{MINUS SIGN}50.0%")
    assert bounds(Interval(0.5, 0.25, 0.75), "number") == "[0.25, 0.75]"
    assert bounds(Interval(math.nan, math.nan, math.nan)) == bounds(None) == ""


def test_plots_leave_out_what_is_not_there() -> None:
    [panel] = curve_panels("s", {"reward": [(1, math.nan)], "KL": [(1, 1.0), (2, math.nan)], "probe": []})
    assert "<figcaption>KL</figcaption>" in panel
    assert gap_panel({}) is None
    assert round_panel("q", {"a": [Interval(math.nan, math.nan, math.nan)]}) is None
    assert rate_panels(full_summary().by("utility plain")[:1]) == []  # the original alone
    assert len(rate_panels(full_summary().by("utility plain"))) == 2


def test_each_judge_has_its_table_and_they_are_compared() -> None:
    judges = ("a judge", "b judge")
    report = replace(
        full_report(),
        summary=full_summary(judges=judges),
        judges={"b judge": Interval(0.75, 0.5, 1.0), "a judge": Interval(0.6, 0.4, 0.8)},
    )
    assert report.judge == "b judge"
    page = Page(render(report))
    assert page.open == []
    assert page.text.index("Judged by b judge") < page.text.index("Judged by a judge")
    assert page.text.count("Δ vs original") == 2
    for text in ("b judge with the held-out labels (chance is 50%)75.0%", "a judge with the held-out labels"):
        assert text in page.text
    assert "Cohen’s kappa: a judge, b judge1.00" in page.text
    assert "Judged by" not in Page(render(full_report())).text


def test_gaps_that_are_all_equal_can_be_drawn() -> None:
    panel = gap_panel({"copies": [0.0] * 5})
    assert panel is not None
    assert "copies: 0% above 0" in panel


def test_every_figure_of_health_has_an_explanation_and_none_is_forgotten() -> None:
    figures = health_figures(MEASURED)
    assert list(figures) == [*RELATIONS, *(key for key in MEASURED if key != "order")] == list(HEALTH)
    assert list(figures)[:5] == ["wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw"]  # the five pairs of Eq. 2
    assert all(name and explanation for name, explanation in HEALTH.values())
    assert figures["wl>ww"] == Interval(0.5, 0.25, 0.75)
    assert figures["length_correlation"] == -0.25
    with pytest.raises(KeyError, match="fresh_pairs"):
        health_figures({key: value for key, value in MEASURED.items() if key != "fresh_pairs"})


def test_a_page_with_half_of_a_surrogate_pair_can_be_written() -> None:
    assert (
        "title half a pair \ufffd"
        in Page(render(full_report("half a pair \ud83d")).encode("utf-8").decode("utf-8")).text
    )


def many(systems: int = 12, items: int = 40) -> list[VerdictRow]:
    generator = np.random.default_rng(0)
    rows = []
    for strength in range(systems):
        for item in range(items):
            verdict = Verdict.WIN if generator.random() < strength / systems else Verdict.LOSS
            lengths = (int(generator.integers(50, 100 + 10 * strength)), 90)
            rows.append(VerdictRow(f"{item}", f"system {strength} <b>", "base", verdict, judge="j", lengths=lengths))
    return rows


def test_the_page_of_a_leaderboard_is_whole_and_loads_nothing() -> None:
    summary = summarise([*many(), VerdictRow("0", "x", "y", Verdict.WIN, judge="j")], resamples=50)
    html = leaderboard_page(summary)
    page = Page(html)  # parses it, and checks that every element is closed
    assert "No verdict against base for x, y." in page.text
    assert html.count("<svg") == 3
    assert "<script" not in html
    assert "<b>" not in html
    assert not re.search(r'src=|href="(?!#)|url\((?!#)|@import', html)
    # The strongest stands first, and the matrix has a cell for each two systems.
    order = [int(found) for found in re.findall(r'<tr><th scope="row">system (\d+)', html)]
    assert (
        order[:12]
        == [int(line.system.split()[1]) for line in sorted(summary.by("j"), key=lambda s: -s.delta.estimate)][:12]
    )
    cells = re.findall(
        r"<td(?: class=.(?:up|down).)?>(\S+)</td>", html[html.index('class="matrix"') : html.index("One scale")]
    )
    assert len(cells) == 12 * 11
    best, worst = summary.compared("j", [(f"system {order[0]} <b>", f"system {order[11]} <b>")])[0], cells[10]
    assert worst == number(100 * best.delta.estimate, 0, signed=True)
    assert leaderboard_page(summary) == html


def test_the_page_of_a_leaderboard_leaves_nobody_out_and_nothing_reorders_it() -> None:
    unread = [VerdictRow(f"{n}", "unread\u202e\x1b", "base", Verdict.UNPARSABLE, judge="j") for n in range(40)]
    apart = [VerdictRow("1", "system 1 <b>", "system 2 <b>", Verdict.WIN, judge="another")]
    html = leaderboard_page(summarise([*many(3), *unread, *apart], resamples=20))
    text = Page(html).text
    assert "unread\ufffd\u241b" in text
    assert not {"\u202e", "\x1b"} & set(html)
    assert "Judged by another" in text
    assert "No verdict against base for system 1 <b>, system 2 <b>." in text


def test_a_leaderboard_without_lengths_has_no_plot_of_them() -> None:
    rows = [replace(row, lengths=None) for row in many(3)]
    assert leaderboard_page(summarise(rows, resamples=20)).count("<svg") == 2
