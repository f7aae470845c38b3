"""What Self-Refine talks to: a local model, or any OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pitlm.core.nouns import Answer

Conversation = list[dict[str, str]]


class Chat(Protocol):
    """Completes conversations; :class:`pitlm.models.generators.Policy` is one. None stands for a reply that failed."""

    def complete(
        self, conversations: Sequence[Conversation], *, temperature: float, seed: int
    ) -> Sequence[Answer | None]: ...


class Completion(Protocol):
    """What an endpoint gave: a reply, or a failure that is not empty."""

    @property
    def text(self) -> str: ...
    @property
    def failure(self) -> str: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class Endpoint(Protocol):
    """Asks a server for many completions at once."""

    def complete(
        self, conversations: Sequence[Conversation], *, temperature: float, seed: int
    ) -> Sequence[Completion]: ...


@dataclass(frozen=True, slots=True)
class EndpointChat:
    """A chat model behind an endpoint: its completions as answers."""

    endpoint: Endpoint

    def complete(
        self, conversations: Sequence[Conversation], *, temperature: float, seed: int
    ) -> Sequence[Answer | None]:
        done = self.endpoint.complete(conversations, temperature=temperature, seed=seed)
        return [None if c.failure else Answer(c.text.strip(), c.output_tokens, c.input_tokens) for c in done]
