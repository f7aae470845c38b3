"""The text that an LLM judge is asked with: a template, filled so that no answer can pass for a part of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison

DEFAULT = Path(__file__).parent / "prompts" / "compare.txt.j2"
_PROBE = Comparison(Prompt.of("probe-request"), "probe-answer-one", "probe-answer-two")


class JudgePrompt:
    """A Jinja template with ``first``, ``second``, ``prompt`` (the last user turn) or ``conversation``, and ``mark``.

    ``mark`` occurs in none of the texts, so no answer can forge a delimiter that holds the mark. The same texts always
    get the same mark, whichever text is shown first. Values are never read as template code.

    Raises:
        InputError: no such file, broken template code, an unknown name, or a text that the template does not show.
    """

    def __init__(self, path: Path = DEFAULT) -> None:
        try:
            source = path.read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise InputError.at(path, found=str(error), expected="a template in UTF-8") from error
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        expected = "a Jinja template with first, second, prompt or conversation, and mark"
        try:
            self._template = environment.from_string(source)
            shown = self.fill(_PROBE)
        except jinja2.TemplateError as error:
            line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else None
            raise InputError.at(path, line=line, found=str(error), expected=expected) from error
        texts = {"first": _PROBE.first, "second": _PROBE.second, "prompt or conversation": _PROBE.prompt.text}
        for name, text in texts.items():
            if text not in shown:
                raise InputError.at(path, found=f"nowhere that shows {name}", expected=expected)

    def fill(self, comparison: Comparison) -> str:
        """The text that a judge is asked with; the comparison's first response is A."""
        return self._template.render(
            first=comparison.first,
            second=comparison.second,
            prompt=comparison.prompt.text,
            conversation=comparison.prompt.as_messages(),
            mark=mark_of(comparison),
        )


def mark_of(comparison: Comparison) -> str:
    """Sixteen hexadecimal digits that occur in no text of the comparison; both orders have the same digits."""
    texts = [*sorted((comparison.first, comparison.second)), *(m.content for m in comparison.prompt.messages)]
    everything = json.dumps(texts)
    lowered = everything.lower()
    for number in range(1 << 16):
        mark = hashlib.sha256(f"{number}\n{everything}".encode()).hexdigest()[:16]
        if mark not in lowered:
            return mark
    raise AssertionError("unreachable: no text holds the hashes of itself")
