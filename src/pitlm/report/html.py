"""A report as one HTML file that needs nothing else: no network, no fonts, no other files.

Everything that a model or a user wrote is data. Jinja escapes it, the table of answers reads it from
an escaped JSON block with ``textContent``, and a content security policy allows only the report's own
script, so that not even a mistake here lets an answer run code or call home.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pitlm.core.verdicts import Verdict
from pitlm.evaluate.statistics import Interval
from pitlm.report import plots
from pitlm.report.shape import BeforeAfter, Report

DASH = "\N{EN DASH}"


def render(report: Report) -> str:
    """The report as HTML; equal reports give equal text."""
    verdicts = {example.row.verdict for example in report.examples if example.row}
    template = environment(autoescape=True).get_template("template.html.j2")
    page = template.render(
        report=report,
        rates=plots.rate_panels(report.systems),
        curves=[(curve.stage, panels) for curve in report.curves if (panels := plots.curve_panels(curve))],
        quality=plots.round_panel(report.quality_by_round) if report.quality_by_round else None,
        gaps=plots.gap_panel(report.gaps),
        examples=[_example(example) for example in report.examples],
        outcomes=[verdict for verdict in Verdict if verdict in verdicts],
    )
    # A model can emit half of a surrogate pair, which no file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def environment(**options: Any) -> Environment:
    """The package's templates, with the filters that write figures; further options are jinja's."""
    made = Environment(
        loader=PackageLoader("pitlm.report", "."),
        **options,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "share": share,
        "bounds": bounds,
        "csp_hash": _csp_hash,
        "json": partial(json.dumps, ensure_ascii=False),  # a string of Python and of JSON alike
    }
    return made


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """A number for reading; a dash for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    # "-0.00" says that something is negative which the shown digits do not support.
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


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _example(example: BeforeAfter) -> dict[str, Any]:
    """One row for the page's script, in JSON types; the keys are those that the script reads."""
    trace, row = example.trace, example.row
    turns = trace.prompt.as_messages()
    return {
        "prompt": trace.prompt.text if len(turns) == 1 else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns),
        "original": trace.original,
        "final": trace.final,
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
