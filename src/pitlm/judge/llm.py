"""A language model as the judge, asked in words through any OpenAI-compatible endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pitlm.core.judge_section import JudgeSection
from pitlm.core.nouns import Advance, Prompt
from pitlm.core.verdicts import Comparison, Reply, Verdict
from pitlm.engines.endpoint import ChatEndpoint, Completion, Price
from pitlm.engines.reply_cache import ReplyCache
from pitlm.judge.judge_prompt import DEFAULT, JudgePrompt
from pitlm.judge.protocol import TwoOrderJudge

# ASCII only: a letter that merely looks like A is not A.
_VERDICT = re.compile(r"verdict\s*:\s*(a|b|tie)\.?", re.ASCII | re.IGNORECASE)
_MARKUP = str.maketrans("", "", "*_`#[]")
_VERDICTS = {"a": Verdict.WIN, "b": Verdict.LOSS, "tie": Verdict.TIE}


@dataclass
class LLMJudge(TwoOrderJudge):
    """Asks a language model about each pair in both orders and keeps both raw replies.

    Two equal responses are a tie, and nobody is asked. A reply that was cut off at its length limit is unparsable,
    whatever its last line; so is a failed call, whose reply keeps the reason.

    Attributes:
        endpoint: who is asked.
        template: the text that the judge is asked with.
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
        template = JudgePrompt(section.template or DEFAULT)
        same = {"temperature", "max_tokens", "seed", "body", "timeout", "concurrency", "max_cost"}
        endpoint = ChatEndpoint(
            section.model or "",
            section.base_url,
            price=Price.of(section.price, section.model or "") if section.price is not None else None,
            cache=ReplyCache(section.cache) if section.cache is not None else None,
            **section.model_dump(include=same),
        )
        return cls(endpoint, template, section.retry_unparsable)

    def ask(self, shown: Sequence[Comparison], attempt: int, advance: Advance | None) -> list[Reply]:
        """One reply per comparison, from the endpoint or its cache.

        Raises:
            InputError: as :meth:`pitlm.engines.endpoint.ChatEndpoint.complete` does.
        """
        texts = [self.template.fill(comparison) for comparison in shown]
        done = self.endpoint.complete([Prompt.of(text) for text in texts], attempt=attempt, advance=advance)
        return [read_reply(completion, prompt=text) for completion, text in zip(done, texts, strict=True)]


def read_reply(completion: Completion, *, prompt: str = "") -> Reply:
    """A completion as the reply about the comparison that was shown."""
    usable = not completion.failure and completion.finish != "length"
    same = ("text", "input_tokens", "cached_tokens", "output_tokens", "cost", "failure")
    return Reply(
        swapped=False,
        verdict=parse_verdict(completion.text) if usable else Verdict.UNPARSABLE,
        prompt=prompt,
        **{name: getattr(completion, name) for name in same},
    )


def parse_verdict(text: str) -> Verdict:
    """The verdict on the last line that is not empty: ``Verdict: A``, ``Verdict: B`` or ``Verdict: tie``.

    Win means that the answer shown as A is better. Case, Markdown around the verdict and a full stop do not matter.
    Anything else on that line, or no such line, is unparsable. No other line counts, so a verdict that the judge quotes
    from an answer, or considers on the way, is none.
    """
    # Not splitlines: a separator that no judge writes, out of an answer that it quotes, would begin a line of its own.
    lines = [line for line in text.split("\n") if line.strip()]
    match = _VERDICT.fullmatch(lines[-1].translate(_MARKUP).strip()) if lines else None
    return _VERDICTS[match[1].lower()] if match else Verdict.UNPARSABLE
