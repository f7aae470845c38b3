"""A language model as the judge, asked in words through any OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pitlm.core.judge_section import JudgeSection
from pitlm.core.nouns import Advance, Prompt
from pitlm.core.verdicts import Comparison, Reply, Verdict
from pitlm.engines.endpoint import ChatEndpoint, Completion
from pitlm.engines.prices import Price
from pitlm.engines.reply_cache import ReplyCache
from pitlm.judge.judge_prompt import DEFAULT, JudgePrompt
from pitlm.judge.parsing import parse_verdict
from pitlm.judge.protocol import TwoOrderJudge


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
        endpoint = ChatEndpoint(
            section.model or "",
            section.base_url,
            temperature=section.temperature,
            max_tokens=section.max_tokens,
            seed=section.seed,
            body=section.body,
            timeout=section.timeout,
            concurrency=section.concurrency,
            price=Price.of(section.price, section.model or "") if section.price is not None else None,
            max_cost=section.max_cost,
            cache=ReplyCache(section.cache) if section.cache is not None else None,
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
    return Reply(
        swapped=False,
        verdict=parse_verdict(completion.text) if usable else Verdict.UNPARSABLE,
        text=completion.text,
        prompt=prompt,
        input_tokens=completion.input_tokens,
        cached_tokens=completion.cached_tokens,
        output_tokens=completion.output_tokens,
        cost=completion.cost,
        failure=completion.failure,
    )
