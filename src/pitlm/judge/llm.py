"""Judges that answer in words: a language model behind any OpenAI-compatible endpoint, and a file of its replies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pitlm.core.errors import InputError, first_line, refuse_device
from pitlm.core.evaluation_section import JudgeSection
from pitlm.core.nouns import Advance, Prompt
from pitlm.core.verdicts import Comparison, Reply, Verdict
from pitlm.data.readers import read_rows
from pitlm.data.row_fields import check_text
from pitlm.engines.endpoint import ChatEndpoint, Price
from pitlm.engines.reply_cache import ReplyCache
from pitlm.judge.protocol import TwoOrderJudge

DEFAULT = Path(__file__).parent / "prompts" / "compare.txt.j2"
"""The built-in template."""
WANTED = "a Jinja template with first, second, prompt or conversation, and mark"
LONGEST = 20_000_000
"""Most characters of a question. A template that writes more is taken for one that never ends."""
_PROBE = Comparison(Prompt.of("probe-request"), "probe-answer-one", "probe-answer-two")
# ASCII only: a letter that merely looks like A is not A.
_VERDICT = re.compile(r"verdict\s*:\s*(a|b|tie)\.?", re.ASCII | re.IGNORECASE)
_MARKUP = str.maketrans("", "", "*_`#[]")
_VERDICTS = {"a": Verdict.WIN, "b": Verdict.LOSS, "tie": Verdict.TIE}


class JudgePrompt:
    """A Jinja template with ``first``, ``second``, ``prompt`` (the last user turn) or ``conversation``, and ``mark``.

    ``mark`` occurs in none of the texts, so no answer can forge a delimiter that holds the mark. The same texts always
    get the same mark, whichever text is shown first. Values are never read as template code.

    Raises:
        InputError: no such file, broken template code, an unknown name, or a text that the template does not show.
    """

    def __init__(self, path: Path = DEFAULT) -> None:
        self.path = path
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        refuse_device(path)
        with self._faults_named():
            self._template = environment.from_string(path.read_text(encoding="utf-8"))
        shown = self.fill(_PROBE)
        texts = {"first": _PROBE.first, "second": _PROBE.second, "prompt or conversation": _PROBE.prompt.text}
        for name, text in texts.items():
            if text not in shown:
                raise InputError.at(path, found=f"nowhere that shows {name}", expected=WANTED)

    def fill(self, comparison: Comparison) -> str:
        """The question to the judge, as text; the comparison's first response is A.

        Raises:
            InputError: the template fails on this comparison, or writes without end.
        """
        texts = {"first": comparison.first, "second": comparison.second, "prompt": comparison.prompt.text}
        texts["mark"], question = mark_of(comparison), ""
        with self._faults_named():
            for part in self._template.generate(**texts, conversation=comparison.prompt.as_messages()):
                question += part
                if len(question) > LONGEST:
                    raise ValueError(f"more than {LONGEST:,} characters of text")
        return question

    @contextmanager
    def _faults_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the code of a template is its author's, and can raise anything
            line = getattr(error, "lineno", None)
            raise InputError.at(self.path, line=line, found=first_line(error), expected=WANTED) from error


def mark_of(comparison: Comparison) -> str:
    """Sixteen hexadecimal digits that occur in no text of the comparison; both orders have the same digits."""
    texts = [*sorted((comparison.first, comparison.second)), *(m.content for m in comparison.prompt.messages)]
    everything = json.dumps(texts)
    marks = (hashlib.sha256(f"{number}\n{everything}".encode()).hexdigest()[:16] for number in count())
    return next(mark for mark in marks if mark not in everything.lower())


@dataclass
class LLMJudge(TwoOrderJudge):
    """Asks a language model about each pair in both orders and keeps both raw replies.

    Two equal responses are a tie, without a question to the model. A reply that was cut off at its length limit is
    unparsable, whatever its last line says. A failed call is unparsable too, and its reply keeps the reason.

    Attributes:
        endpoint: the language model to ask.
        template: turns a comparison into the question.
    """

    endpoint: ChatEndpoint
    template: JudgePrompt = field(default_factory=JudgePrompt)
    ask_again: int = 0
    name: str = field(init=False)
    asks_about_equals = False

    def __post_init__(self) -> None:
        self.name = self.endpoint.model

    @classmethod
    def of(cls, section: JudgeSection) -> LLMJudge:
        """The judge that a recipe or the command line describes.

        Raises:
            InputError: a template, price, key or address that cannot be used, or a cost limit without a price.
        """
        template, model = JudgePrompt(section.template or DEFAULT), section.model or ""
        price = Price.of(section.price, model) if section.price is not None else None
        cache = ReplyCache(section.cache) if section.cache is not None else None
        same = {"temperature", "max_tokens", "seed", "body", "timeout", "concurrency", "max_cost"}
        endpoint = ChatEndpoint(model, section.base_url, price=price, cache=cache, **section.model_dump(include=same))
        return cls(endpoint, template, section.retry_unparsable)

    def ask(self, shown: Sequence[Comparison], attempt: int, advance: Advance) -> list[Reply]:
        """One reply per comparison, from the endpoint or its cache.

        Raises:
            InputError: as :meth:`pitlm.engines.endpoint.ChatEndpoint.complete` does.
        """
        texts = [self.template.fill(comparison) for comparison in shown]
        done = self.endpoint.complete([Prompt.of(text) for text in texts], attempt=attempt, advance=advance)
        same = ("text", "input_tokens", "cached_tokens", "output_tokens", "cost", "failure")
        replies = []
        for completion, text in zip(done, texts, strict=True):
            usable = not completion.failure and completion.finish != "length"
            verdict = parse_verdict(completion.text) if usable else Verdict.UNPARSABLE
            replies.append(Reply(False, verdict, prompt=text, **{name: getattr(completion, name) for name in same}))
        return replies


@dataclass
class ScriptedJudge(TwoOrderJudge):
    """Takes the replies in both orders from a script: for tests, and for replies that were collected elsewhere.

    Attributes:
        script: returns one raw reply to each comparison; A is the comparison's first response.
    """

    script: Callable[[Sequence[Comparison]], Sequence[str]]
    name: str = "scripted"

    @classmethod
    def of(cls, section: JudgeSection) -> ScriptedJudge:
        """The judge whose raw replies stand in a file of JSON lines, one string on each line.

        The file has two replies for each pair: the first for the pair as it is, the second for the swapped pair.

        Raises:
            InputError: the file cannot be read or holds something else. The judge itself also raises InputError when it
                is asked and the file does not hold two replies for each pair.
        """
        path, replies = Path(section.model or ""), []
        for raw in read_rows(path):
            with raw.errors_named():
                replies.append(check_text(raw.value(), None, "a string: one raw reply"))

        def script(shown: Sequence[Comparison]) -> list[str]:
            if len(replies) != len(shown):
                expected = f"{len(shown)}, two for each pair"
                raise InputError.at(path, found=f"{len(replies)} replies", expected=expected)
            return replies

        return cls(script, path.stem)

    def ask(self, shown: Sequence[Comparison], attempt: int, advance: Advance) -> list[Reply]:
        said = self.script(shown)
        advance(len(said))
        return [Reply(False, parse_verdict(text), text) for text in said]


def parse_verdict(text: str) -> Verdict:
    """The verdict on the last line that is not empty: ``Verdict: A``, ``Verdict: B`` or ``Verdict: tie``.

    Win means that the answer shown as A is better. Case, Markdown around the verdict and a full stop do not matter.
    Anything else on that line, or no such line, is unparsable. No other line counts, because the judge may quote a
    verdict from an answer there, or consider a verdict that it then rejects.
    """
    # Not splitlines, which also splits at rare separators such as U+2028. An answer may hold one, and if the judge
    # quotes that answer, the text after the separator would count as the last line.
    lines = [line for line in text.split("\n") if line.strip()]
    match = _VERDICT.fullmatch(lines[-1].translate(_MARKUP).strip()) if lines else None
    return _VERDICTS[match[1].lower()] if match else Verdict.UNPARSABLE
