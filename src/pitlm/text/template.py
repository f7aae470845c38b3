"""The one place where x, y_ref and y become tokens.

Policy, improver, R_P and R_PIT all read what these functions return, so that no two of them can
see different texts. Everything goes through the tokenizer's chat template; a tokenizer without one
is given ``PLAIN_CHAT_TEMPLATE``, which travels with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pitlm.core.nouns import Prompt

PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'}[message['role']] + ':\n' }}"
    "{{ message['content'] + '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""For base models: plain markers, and a prompt that ends on a newline, where tokens do not merge."""


class Tokenizer(Protocol):
    """What this module needs of a Hugging Face tokenizer."""

    eos_token_id: int | None

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def encode(self, text: str, **kwargs: Any) -> list[int]: ...


CHAT_TEMPLATE_ARGUMENTS: dict[str, Any] = {"enable_thinking": False}
"""Given to every template; families without a thinking mode ignore it."""


@dataclass(frozen=True, slots=True)
class Template:
    """How a reference is shown to the improver: x, then y_ref as the assistant's turn, then ``ask``.

    ``ask`` is fixed and names no criterion: the goal is implicit in the preferences (design, Template).
    """

    ask: str

    def policy_messages(self, prompt: Prompt) -> list[dict[str, str]]:
        return prompt.as_messages()

    def improver_messages(self, prompt: Prompt, reference: str) -> list[dict[str, str]]:
        return [
            *prompt.as_messages(),
            {"role": "assistant", "content": reference},
            {"role": "user", "content": self.ask},
        ]


def encode_prompts(tokenizer: Tokenizer, conversations: Sequence[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids of each conversation, up to where the assistant begins to write."""
    if not conversations:
        return []
    encoded = tokenizer.apply_chat_template(
        list(conversations), add_generation_prompt=True, tokenize=True, return_dict=True, **CHAT_TEMPLATE_ARGUMENTS
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def encode_completion(tokenizer: Tokenizer, response: str) -> list[int]:
    """Token ids of a response, end token included."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token")
    return [*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
