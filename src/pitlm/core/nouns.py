"""The nouns of the project: small frozen values that every room above uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from pitlm.core.errors import ConversationError, describe, list_fields

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

NOT_READ = (
    "tool_calls", "tool_call_id", "function_call", "refusal", "audio", "image", "images", "image_url", "video",
    "videos", "file", "files", "documents", "attachments", "reasoning", "reasoning_content", "thinking",
)  # fmt: skip
"""Fields of a message that say something beside its text. A message in which one of them holds something is refused."""

Advance = Callable[[float], None]
"""A function to call with the number of items that have just been finished; it moves a progress bar."""


HALF = "half a character (a lone surrogate)"
"""How messages call the fault of a string that :func:`is_unicode` refuses."""


def is_unicode(text: str) -> bool:
    """Whether a string is valid Unicode, which a file can hold. A string from JSON or from a shell may be invalid."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    @classmethod
    def of(cls, value: object, number: int) -> Message:
        """Make a message of an object with ``role`` and ``content``, or of a Message. A developer's turn is a system's.

        Args:
            number: place of the message in its conversation, from 1, for the error.

        Raises:
            ConversationError: something else, an unknown role, content that is no text or no valid
                Unicode, or something beside the text.
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise ConversationError(f"{describe(value)} as message {number}", "an object with role and content")
        role, content = value.get("role"), value.get("content")
        role = "system" if role == "developer" else role  # OpenAI's newer name
        if role not in ROLES:
            found = describe(role) if "role" in value else f"no role (the message has {list_fields(value)})"
            raise ConversationError(f"{found} as the role of message {number}", f"one of {', '.join(ROLES)}")
        if (name := next((name for name in NOT_READ if value.get(name)), None)) is not None:
            expected = "nothing but text: the rest of a message would be lost"
            raise ConversationError(f"'{name}' in message {number}", expected)
        if not isinstance(content, str):
            found = describe(content) if "content" in value else "nothing"
            raise ConversationError(f"{found} as the content of message {number}", "a string")
        if not is_unicode(content):
            raise ConversationError(f"{HALF} in message {number}", "valid Unicode")
        return cls(role, content)


@dataclass(frozen=True, slots=True)
class Prompt:
    """x: a conversation that ends with the user's turn.

    An optional system turn comes first; then user and assistant alternate.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        begin = 1 if self.messages and self.messages[0].role == "system" else 0
        if not self.messages[begin:]:
            raise ConversationError("no user turn", "a conversation that ends with one")
        for number, message in enumerate(self.messages[begin:], start=begin + 1):
            expected = "assistant" if (number - begin) % 2 == 0 else "user"
            if message.role != expected:
                rule = "the turns of a conversation alternate, the user's first, after an optional system turn"
                raise ConversationError(f"role '{message.role}' in turn {number}", f"'{expected}': {rule}")
        if self.messages[-1].role != "user":
            raise ConversationError("a conversation that ends on 'assistant'", "it to end on 'user'")

    @classmethod
    def of(cls, value: AnyPrompt) -> Prompt:
        """Make a prompt of a string, chat messages, or a Prompt.

        Raises:
            ConversationError: a message that cannot be read, or turns that do not alternate.
        """
        if isinstance(value, Prompt):
            return value
        if isinstance(value, str):
            return cls((Message.of({"role": "user", "content": value}, 1),))
        if not isinstance(value, Sequence):
            raise ConversationError(describe(value), "a string or a list of messages")
        return cls(tuple(Message.of(item, number) for number, item in enumerate(value, start=1)))

    def as_messages(self) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.content} for message in self.messages]

    @property
    def text(self) -> str:
        """The last user turn: what people mean by "the question"."""
        return self.messages[-1].content

    @property
    def key(self) -> str:
        """A stable 16-digit hash of the conversation; folds are cut by it."""
        return hashlib.sha256(json.dumps(self.as_messages(), ensure_ascii=False).encode()).hexdigest()[:16]


AnyPrompt = str | Prompt | Sequence[Mapping[str, Any] | Message]
"""The values that :meth:`Prompt.of` takes."""


@dataclass(frozen=True, slots=True)
class Preference:
    """(x, y_w, y_l): the chosen response is preferred to the rejected one."""

    prompt: Prompt
    chosen: str
    rejected: str

    def as_dict(self) -> dict[str, Any]:
        return {"prompt": self.prompt.as_messages(), "chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True, slots=True)
class Improvement:
    """(x, y_ref, y): a response beside the reference that it was made from."""

    prompt: Prompt
    reference: str
    response: str


Score = Callable[[Sequence[Prompt], Sequence[str]], list[float]]
"""Prompts and responses -> the quality of each response, from a judge that no model is trained on."""


class StopReason(StrEnum):
    """Why the loop stopped: nothing better was proposed, or a budget was spent, or somebody stopped it.

    ``CONVERGED``: all proposals of the last round equalled the incumbent. ``ACCEPTED_NONE``: no proposal of the last
    round had a gap above the margin. The other reasons are named after their budget.
    """

    ACCEPTED_NONE = "accepted-none"
    CONVERGED = "converged"
    ROUNDS = "rounds"
    TOKENS = "tokens"
    SECONDS = "seconds"
    COST = "cost"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the loop: the best of its proposals, the calibrated gap to the incumbent, and the decision.

    Attributes:
        gap: in the units of the scorer that decides; 0 if the system accepts without a score.
        gaps: gaps of all k proposals, in the order in which they were made; empty if there was only one.
        tokens, prompt_tokens: tokens that the round generated and read, for all proposals.
    """

    proposal: str
    gap: float
    accepted: bool
    gaps: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        own = {"proposal": self.proposal, "gap": self.gap, "accepted": self.accepted}
        own |= {"tokens": self.tokens, "prompt_tokens": self.prompt_tokens}
        return {**own, "gaps": list(self.gaps)} if self.gaps else own


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that one loop did to one response.

    Attributes:
        generated_tokens, prompt_tokens: tokens of all proposals, accepted or not.
        cost: cost of all proposals, in the improver's currency.
    """

    prompt: Prompt
    original: str
    rounds: tuple[Round, ...]
    stop_reason: StopReason
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cost: float = 0.0

    @property
    def responses(self) -> tuple[str, ...]:
        """The original and each accepted proposal, in order."""
        return (self.original, *(r.proposal for r in self.rounds if r.accepted))

    @property
    def final(self) -> str:
        return self.responses[-1]

    @property
    def gaps(self) -> tuple[float, ...]:
        """The gap of every round's best proposal to the incumbent (raw-score units, 0 = no change)."""
        return tuple(r.gap for r in self.rounds)

    def as_dict(self) -> dict[str, Any]:
        made = {"prompt": self.prompt.as_messages(), "original": self.original, "final": self.final}
        made["rounds"] = [r.as_dict() for r in self.rounds]
        return {**made, **asdict(self), **made}  # first for the order of the keys, then for their values

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Trace:
        """The inverse of :meth:`as_dict`; further fields are ignored.

        Raises:
            KeyError, TypeError, ValueError: not such a row.
        """
        rounds = tuple(Round(**{**r, "gaps": tuple(r.get("gaps", ()))}) for r in row["rounds"])
        spent = (row["generated_tokens"], row["prompt_tokens"], row["cost"])
        return cls(Prompt.of(row["prompt"]), row["original"], rounds, StopReason(row["stop_reason"]), *spent)


@dataclass(frozen=True, slots=True)
class Answer:
    """One system's answer to one item, with its tokens and its cost (0 if they are not counted)."""

    text: str
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cost: float = 0.0
