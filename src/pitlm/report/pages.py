"""The two pages about a run, from templates: its report in HTML, and the model card of a model that is exported.

The report is one HTML file that needs nothing else: no network, no fonts, no other files. Texts of models and users are
only data. Jinja escapes them, and the table of answers reads them from an escaped JSON block with ``textContent``. A
content security policy allows only the report's own script. So even after a mistake here, no answer could run code or
call home.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template
from markupsafe import Markup

from pitlm import __version__
from pitlm.core.verdicts import Verdict
from pitlm.evaluate.statistics import Interval
from pitlm.evaluate.summary import Summary
from pitlm.io.templates import template
from pitlm.io.visible import visible
from pitlm.models.loading import Card
from pitlm.report import plots
from pitlm.report.shape import HEALTH, BeforeAfter, Report

DASH = "\N{EN DASH}"
PAPER = "2310.00898"
_TAGS = {"improver": "self-improvement", "gap": "reward-model", "reward": "reward-model"}
# The figures that the hub can show for each kind of model, as keys in the health of R_PIT.
_FIGURES = {"gap": ("held_out_pairs", "fresh_pairs"), "reward": ("held_out_pairs_reward",)}


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that a model comes from.

    Attributes:
        recipe: the whole recipe as plain values, without a path of the machine that it ran on.
        base, source: the start model and the data, as a reader knows them.
        hub_base, hub_source: names of the start model and the data on the hub, if they came from there.
        version: of pitlm, when the run began.
        reading: one line about the rows of the data.
        folds: pairs of each fold.
        results: what was measured; parts that were not measured are empty.
        row: name of this model's row in the table of systems; empty for an intermediate stage.
        world: the world that the data is from, if its truth is known.
    """

    recipe: Mapping[str, Any]
    stage: str
    base: str
    source: str
    hub_base: str | None
    hub_source: str | None
    version: str
    reading: str
    folds: Mapping[str, int]
    results: Report
    row: str
    world: str | None


def render(report: Report) -> str:
    """The report as HTML; equal reports give equal text."""
    verdicts = {example.row.verdict for example in report.examples if example.row}
    return _page(
        "template.html.j2",
        report=report,
        rates=plots.rate_panels(report.systems),
        curves={stage: found for stage, own in report.curves.items() if (found := plots.curve_panels(stage, own))},
        quality=[p for judge, systems in report.quality_by_round.items() if (p := plots.round_panel(judge, systems))],
        gaps=plots.gap_panel(report.gaps),
        examples=[_example(example) for example in report.examples],
        outcomes=[verdict for verdict in Verdict if verdict in verdicts],
    )


def leaderboard_page(summary: Summary) -> str:
    """The leaderboard of a summary as HTML without a script, the highest Delta first."""
    judges = {}
    for judge in dict.fromkeys([*(line.judge for line in summary.systems), *summary.unmatched]):
        own_lines = [line for line in summary.by(judge) if line.system != summary.baseline]
        lines = sorted(own_lines, key=lambda line: (not line.tally.judged, -line.delta.estimate))
        drawn = [*plots.rate_panels(lines), *filter(None, [plots.length_panel(lines)])]
        matrix = {(d.first, d.second): d for own in summary.differences for d in (own, own.swap()) if d.judge == judge}
        judges[judge] = {"lines": lines, "plots": drawn, "matrix": matrix}
    return _page("leaderboard.html.j2", summary=summary, judges=judges)


def model_card(card: Card, origin: Origin | None, *, adapter: tuple[str, int] | None, **shown: Any) -> str:
    """README.md of an exported model: metadata for the hub, then what it is, how it is used, and what was measured.

    Args:
        origin: None for a model outside a run.
        adapter: the base by name and the rank, for an adapter over it.
        shown: further values of the template: ``name`` is what commands call the model, a name on the hub
            (``on_hub``) or the name of its folder; ``temperature`` is None for a model that does not write; ``dtype``
            is that of whole weights, None for an adapter; ``promises`` are the calibrations of the gap model that goes
            with the model.
    """
    task, figures = "text-generation" if card.writes else "text-classification", list[EvalResult]()
    data = base = name = None
    if origin is not None:
        figures, base = _figures(card, origin, task), origin.hub_base
        data = origin.hub_source and origin.hub_source.partition(":")[0]  # without the split
        name = f"{origin.recipe['name']}-{card.kind}" if figures else None
    tags = ["pitlm", "pit", f"arxiv:{PAPER}", *([_TAGS[card.kind]] if card.kind in _TAGS else [])]
    of_model = {"base_model": base, "model_name": name, "datasets": [data] if data else None}
    about: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": task, **of_model}
    metadata = ModelCardData(**about, tags=tags, eval_results=figures or None)
    settings = yaml.safe_dump(origin.recipe, sort_keys=False, allow_unicode=True) if origin else ""
    # A fence longer than any in the settings: no text of theirs can end the block.
    fence = "~" * max(3, 1 + max(map(len, re.findall("~+", settings)), default=0))
    texts = {"settings": Markup(settings), "fence": fence, "version": __version__, "infinity": math.inf}
    made = _template("card.md.j2", keep_trailing_newline=True, finalize=plain)
    body = made.render(shown, card=card, origin=origin, adapter=adapter, **texts)
    # Read back by the hub's own class, which refuses the metadata that the hub refuses.
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n{body}"))


def plain(value: Any) -> Any:
    """Escape a text so that Markdown makes no tag, link, image, code or table of it; other values stay as they are."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"[\\`<|]|(?<=\])\(", r"\\\g<0>", visible(re.sub(r"\s*[\r\n]\s*", " ", value)))


def _figures(card: Card, origin: Origin, task: str) -> list[EvalResult]:
    """The figures of this very model, in the hub's form."""
    found: list[tuple[str, str, Interval | float]] = []
    for line in origin.results.systems:
        if line.system == origin.row and line.tally.judged:
            judged = f"against the original answer, judged by {line.judge} (%)"
            found += [("delta", f"win rate less lose rate {judged}", line.delta)]
            found += [("win_rate", f"win rate {judged}", line.win_rate)]
    health = origin.results.health
    found += [("accuracy", f"{HEALTH[k][0]} (%)", health[k]) for k in _FIGURES.get(card.kind, ()) if k in health]
    data = {"dataset_type": origin.hub_source or "preference-pairs", "dataset_name": f"{origin.source}, held out"}
    measured = [(kind, name, value.estimate) for kind, name, value in found if isinstance(value, Interval)]
    return [
        EvalResult(task, **data, metric_type=kind, metric_name=name, metric_value=round(100 * estimate, 1))
        for kind, name, estimate in measured
    ]


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """A number for reading; a dash for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    # "-0.00" would say that the value is negative, but the shown digits do not support that.
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def share(value: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """A fraction as a percentage; a dash for None, NaN and infinities."""
    text = number(None if value is None else 100 * value, digits, signed=signed)
    return text if text == DASH else f"{text}%"


def bounds(value: Interval | None, unit: str = "share", *, signed: bool = False) -> str:
    """``[low, high]`` in percent (unit "share") or as it is (unit "number"); empty for None and NaN."""
    if value is None or not math.isfinite(value.estimate):
        return ""
    show = share if unit == "share" else number
    return f"[{show(value.low, signed=signed)}, {show(value.high, signed=signed)}]"


def _page(name: str, **about: Any) -> str:
    # A model can emit half of a surrogate pair, which no file can hold.
    seen: Any = lambda value: visible(value) if type(value) is str else value  # noqa: E731  # no name reorders the page
    return _template(name, autoescape=True, finalize=seen).render(**about).encode("utf-8", "replace").decode("utf-8")


def _template(name: str, **options: Any) -> Template:
    """A template of the reports, with the filters that write figures; further options are jinja's."""
    filters: dict[str, Any] = {"number": number, "share": share, "bounds": bounds, "csp_hash": _csp_hash}
    made = template("pitlm.report", name, filters | {"json": json_text}, lstrip_blocks=True, **options)
    made.globals["HEALTH"] = HEALTH
    return made


def json_text(value: str) -> Markup:
    """A string in the notation of JSON and Python. It holds no backtick, so it cannot end a span of code."""
    return Markup(json.dumps(value, ensure_ascii=False).replace("`", r"\u0060"))


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def changed_parts(before: str, after: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Two texts in parts, each with whether the other text lacks it; compared word by word."""
    words = [re.findall(r"\S+|\s+", text) for text in (before, after)]
    parts: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for kind, *spans in SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        for own, text, (start, end) in zip(parts, words, (spans[:2], spans[2:]), strict=True):
            if end > start:
                own.append(("".join(text[start:end]), kind != "equal"))
    return parts


def _example(example: BeforeAfter) -> dict[str, Any]:
    """One row for the page's script, in JSON types; the keys are those that the script reads."""
    trace, row = example.trace, example.row
    before, after = changed_parts(trace.original, trace.final)
    turns = trace.prompt.as_messages()
    return {
        "prompt": trace.prompt.text if len(turns) == 1 else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns),
        "original": trace.original,
        "final": trace.final,
        "before": before,
        "after": after,
        "unchanged": trace.final == trace.original,
        "gap": number(example.gap, signed=True),
        "rounds": [
            {"proposal": r.proposal, "gap": number(r.gap, signed=True), "accepted": r.accepted} for r in trace.rounds
        ],
        "stop": str(trace.stop_reason),
        "outcome": str(row.verdict) if row else "",
        "scores": f"{number(row.scores[1])} → {number(row.scores[0])}" if row and row.scores else "",
        "system": row.first if row else "",
    }
