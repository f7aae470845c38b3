"""The one place where x, y_ref and y become tokens, and where texts are kept within the lengths of a recipe.

Policy, improver, R_P and R_PIT all read what these functions return, so no two of them can see different texts.
Everything goes through the tokenizer's chat template. A tokenizer without a chat template gets ``PLAIN_CHAT_TEMPLATE``,
which is saved with the checkpoint.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from pitlm.core.errors import InputError
from pitlm.core.nouns import Preference, Prompt
from pitlm.core.recipe import DataSection

PLAIN_CHAT_TEMPLATE = files("pitlm.data").joinpath("plain_chat.jinja").read_text("utf-8")
"""For base models: plain markers, and prompts that end with a newline, where tokens do not merge."""

ASKING = files("pitlm.data").joinpath("ask.jinja").read_text("utf-8")
"""For servers: adds ASK, the request for a better answer, after an answer that is to be improved."""


_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that this module uses."""

    eos_token_id: int | None
    added_tokens_decoder: Mapping[int, Any]

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def encode(self, text: str, **kwargs: Any) -> list[int]: ...

    def decode(self, token_ids: Any, **kwargs: Any) -> Any: ...


CHAT_TEMPLATE_ARGUMENTS: dict[str, Any] = {"enable_thinking": False}
"""Arguments for every chat template; families without a thinking mode ignore them."""


@dataclass(frozen=True, slots=True)
class Template:
    """How a reference is shown to the improver: x, then y_ref as the assistant's turn, then ``ask``.

    ``ask`` is fixed and names no criterion: the goal is implicit in the preferences.
    """

    ask: str

    def policy_messages(self, prompt: Prompt) -> list[dict[str, str]]:
        return prompt.as_messages()

    def improver_messages(self, prompt: Prompt, reference: str) -> list[dict[str, str]]:
        request = {"role": "user", "content": self.ask}
        return [*prompt.as_messages(), {"role": "assistant", "content": reference}, request]

    def parts(self, conversation: Sequence[Mapping[str, str]]) -> tuple[Prompt, str]:
        """x and y_ref of a conversation that :meth:`improver_messages` made.

        Raises:
            InputError: another conversation.
        """
        x, last = conversation[:-2], conversation[-2:]
        if [turn["role"] for turn in last] != ["assistant", "user"] or last[1]["content"] != self.ask:
            found = last[-1]["content"]
            raise InputError(f"found a conversation that ends with {found!r}, expected y_ref and {self.ask!r}")
        return Prompt.of(x), last[0]["content"]


def encode_prompts(
    tokenizer: Tokenizer, conversations: Sequence[list[dict[str, str]]], *, answered: bool = False
) -> list[list[int]]:
    """Token ids of each conversation, up to where the assistant begins to write.

    Control tokens come from the chat template alone. If a text has the characters of one, they are read as plain text.

    Args:
        answered: each conversation ends with the assistant's answer, and is encoded with this answer.

    Raises:
        InputError: the chat template refuses a conversation; it may not know every role, or every order of roles.
    """
    if not conversations:
        return []
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": not answered, **CHAT_TEMPLATE_ARGUMENTS}
    control = _control_tokens(tokenizer)
    if any(control.search(turn["content"]) for conversation in conversations for turn in conversation):
        options["sanitize_control_tokens"] = True  # much slower, and the same if there is none
    try:
        ids: list[list[int]] = tokenizer.apply_chat_template(list(conversations), **options)["input_ids"]
    except (TemplateError, ValueError) as error:  # a ValueError: several templates, and no default
        raise InputError(f"the chat template refuses this conversation: {error}") from error
    return ids


def encode_completion(tokenizer: Tokenizer, response: str) -> list[int]:
    """Token ids of a response, with the end token. The characters of a control token are read as plain text."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token")
    # A control token that is cut after its first character is none. The tokenizer's own switch for this is a state that
    # other threads would see.
    cuts = [0, *(match.start() + 1 for match in _control_tokens(tokenizer).finditer(response)), len(response)]
    parts = [tokenizer.encode(response[start:end], add_special_tokens=False) for start, end in pairwise(cuts)]
    return [*(token for part in parts for token in part), tokenizer.eos_token_id]


_CONTROL: WeakKeyDictionary[Any, re.Pattern[str]] = WeakKeyDictionary()


def _control_tokens(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Finds every place in a text where a control token of the tokenizer begins."""
    if tokenizer not in _CONTROL:  # reading the tokens takes long
        texts = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        longest_first = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
        _CONTROL[tokenizer] = re.compile(f"(?={longest_first})" if texts else "(?!)")
    return _CONTROL[tokenizer]


@dataclass(slots=True)
class Fitted:
    """The pairs that a recipe's limits and its chat template leave, and the numbers of all others.

    Attributes:
        trimmed: pairs whose prompt was trimmed; they are among the pairs.
        refused: pairs that the chat template refuses.
    """

    pairs: list[Preference] = field(default_factory=list)
    trimmed: int = 0
    dropped: int = 0
    refused: int = 0


def fit_preferences(
    preferences: Sequence[Preference],
    tokenizer: Tokenizer,
    template: Template,
    limits: DataSection,
    places: Sequence[str] = (),
) -> Fitted:
    """Drop over-long pairs, or trim their prompts from the oldest turn, as the recipe's limits say.

    A response is never trimmed, because its end is judged too. So a pair with an over-long response is dropped.

    Args:
        places: file and line of each pair, for the message.

    Raises:
        InputError: the chat template refuses a pair, and ``limits.skip_invalid`` is false.
    """
    found = Fitted()
    for number, pair in enumerate(preferences):
        longest = max(len(encode_completion(tokenizer, y)) for y in (pair.chosen, pair.rejected))
        try:
            fits = longest <= limits.max_response_tokens
            prompt = fit_prompt(pair.prompt, tokenizer, template, limits) if fits else None
        except InputError as error:
            if not limits.skip_invalid:
                problem = f"{places[number] if places else f'pair {number + 1}'}: {error}"
                raise InputError(f"{problem}; data.skip_invalid (--skip-invalid) leaves such pairs out") from error
            found.refused += 1
            continue
        if prompt is None:
            found.dropped += 1
            continue
        found.pairs.append(replace(pair, prompt=prompt))
        found.trimmed += prompt is not pair.prompt
    return found


def fit_prompt(prompt: Prompt, tokenizer: Tokenizer, template: Template, limits: DataSection) -> Prompt | None:
    """The prompt, without its oldest turns if it is too long; None if nothing fits.

    A system turn stays. The turns that are left begin with the user.
    """
    begin = 1 if prompt.messages[0].role == "system" else 0
    for oldest in range(begin, len(prompt.messages), 2):
        left = prompt if oldest == begin else Prompt(prompt.messages[:begin] + prompt.messages[oldest:])
        if len(encode_prompts(tokenizer, [template.policy_messages(left)])[0]) <= limits.max_prompt_tokens:
            return left
        if limits.over_long == "drop":
            break
    return None


def served_template(template: str, ask: str | None) -> str:
    """A chat template that makes the texts of pitlm on a server that knows no arguments of pitlm. Not in the paper.

    The template fixes ``CHAT_TEMPLATE_ARGUMENTS``. With ``ask``, it adds a user turn ``ask`` to a conversation that
    waits for an answer and ends with the assistant's turn, which is the reference. Other conversations are rendered as
    before. A template that this function made is returned unchanged.
    """
    # Each line ends with a tag. Jinja drops the line feed after it, so the original template begins as before.
    fixed = "".join(f"{{%- set {name} = {json.dumps(value)} %}}\n" for name, value in CHAT_TEMPLATE_ARGUMENTS.items())
    if ask is not None:
        fixed += ASKING.replace("ASK", json.dumps(ask, ensure_ascii=False))
    return template if template.startswith(fixed) else fixed + template


def dated_template(template: str, today: str) -> str:
    """A chat template that prints ``today`` (as 2026-01-31) where it would print the day on which it is read.

    Llama 3.2's template is of this kind: with it, the answers of a model would depend on the day. Not in the paper.
    """
    return _NOW.sub(lambda call: json.dumps(date.fromisoformat(today).strftime(call["format"])), template)


def check_template(tokenizer: Tokenizer, where: str | Path) -> None:
    """Check that the tokens of a prompt begin the tokens of the whole conversation, and hold x, y_ref and the request.

    Policy, improver and gap model read a prompt and a completion. Only with such a template do the two make the
    conversation that the template describes. Some templates leave out earlier answers, or begin an answer differently
    when they ask for it.
    The end token after an answer is pitlm's: a template may have another one, or none.

    Args:
        where: the model, for the message.

    Raises:
        InputError: the template does not fit; the message shows what differs.
    """
    x, reference, ask, answer = "what is it", "a lamp", "a better answer", "it is a red lamp"
    asked = [{"role": "user", "content": x}]
    for messages in (asked, [*asked, {"role": "assistant", "content": reference}, {"role": "user", "content": ask}]):
        try:
            [prompt] = encode_prompts(tokenizer, [messages])
            [whole] = encode_prompts(tokenizer, [[*messages, {"role": "assistant", "content": answer}]], answered=True)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if whole[: len(prompt)] != prompt:
            at = next(i for i, token in enumerate(prompt) if whole[i : i + 1] != [token])
            shown, goes_on = (tokenizer.decode(ids[max(0, at - 8) : at + 8]) for ids in (prompt, whole))
            raise _unfit(where, f"asks with {shown!r} and goes on with {goes_on!r}", "the same, up to the answer")
        said = _words(tokenizer, prompt)
        for message in messages:
            if _words(tokenizer, tokenizer.encode(message["content"], add_special_tokens=False)) not in said:
                raise _unfit(where, f"leaves out the {message['role']}'s {message['content']!r}", "every turn in it")
        completion = tokenizer.encode(answer, add_special_tokens=False)
        if not _words(tokenizer, whole[len(prompt) :]).startswith(_words(tokenizer, completion)):
            shown = tokenizer.decode(whole[len(prompt) :][: len(completion) + 16])
            raise _unfit(where, f"writes the answer {answer!r} as {shown!r}", "the answer as it is")


def _words(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of tokens without spaces, which differ between the beginning and the middle of a text."""
    return "".join(tokenizer.decode(ids).split())


def _unfit(where: str | Path, found: str, expected: str) -> InputError:
    return InputError.at(where, found=f"a chat template that {found}", expected=expected)
