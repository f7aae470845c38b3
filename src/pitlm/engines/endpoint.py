"""The one client of OpenAI-compatible chat endpoints: it counts tokens and money, and pays for no reply twice."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, HttpUrl, TypeAdapter, ValidationError

from pitlm.core.errors import InputError, loading
from pitlm.core.nouns import Advance, AnyPrompt, Prompt
from pitlm.engines.reply_cache import ReplyCache
from pitlm.io.visible import one_line

if TYPE_CHECKING:
    import openai

KEY_VARIABLE = "OPENAI_API_KEY"
NOT_ASKED = "not asked: the cost limit was reached"

Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(NamedTuple):
    """Prices of a million tokens, in one currency: of fresh input, of input that the server had cached, of output."""

    input: Cost
    cached: Cost
    output: Cost

    @classmethod
    def of(cls, text: str, model: str = "") -> Price:
        """Read ``in,cached,out``, or a JSON file that gives each model a list or an object of these three numbers.

        Raises:
            InputError: no such numbers, or a file without the model.
        """
        where, given = f"price '{text}'", text.split(",")
        if Path(text).is_file():
            with loading(text, "table of prices {model: [input, cached, output]}"):
                where, given = f"{text}: field '{model}'", json.loads(Path(text).read_text(encoding="utf-8"))[model]
        try:
            return TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            expected = "three numbers from 0, for a million tokens: input, cached, output"
            found = ",".join(map(str, given)) if isinstance(given, list) else given
            raise InputError(f"{where}: found {found}, expected {expected}") from error

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """The cost of one call; ``cached_tokens`` are among ``input_tokens``."""
        fresh = input_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * self.cached + output_tokens * self.output) / 1_000_000


@dataclass(frozen=True, slots=True)
class Completion:
    """A server's reply to one conversation.

    Attributes:
        text: the reply; empty if there is none.
        finish: why the server ended the reply: ``stop``, ``length``, ...
        failure: why there is no reply; empty if there is a reply.
        cost: price of the reply when it was bought, in the currency of the endpoint's price.
    """

    text: str = ""
    finish: str = ""
    failure: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@dataclass
class ChatEndpoint:
    """A model behind an OpenAI-compatible endpoint; several threads may ask at once.

    The openai client retries on 408, 409, 429, 5xx, time-outs and broken connections. It waits as long as Retry-After
    says (up to two minutes), or else with exponential back-off from half a second.

    Attributes:
        base_url: ``http://host:port/v1``; None for ``OPENAI_BASE_URL``, and without that for OpenAI itself.
        key: None for ``OPENAI_API_KEY``; a local server needs none.
        body: further fields of the request; None removes a field (``{"temperature": None}``).
        timeout: seconds that the server may be silent.
        concurrency: calls at the same time, in :meth:`complete`.
        price: turns tokens into money; without a price every cost is 0.
        max_cost: once this object has spent this much, no further call starts. Calls under way still finish.
        cache: where replies are kept and looked up.
        spent, calls, hits: so far: money, replies bought, replies from the cache.
        given_up: the error that stopped all further calls; None as long as calls are made.
    """

    model: str
    base_url: str | None = None
    key: str | None = field(default=None, repr=False)
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    concurrency: int = 8
    retries: int = 5
    price: Price | None = None
    max_cost: float | None = None
    cache: ReplyCache | None = None
    spent: float = field(default=0.0, init=False)
    calls: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)
    given_up: InputError | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price is None:
            raise InputError("a cost limit needs a price: give what a million tokens cost")
        name = "base_url" if self.base_url else "OPENAI_BASE_URL"
        self.base_url = self.base_url or os.environ.get("OPENAI_BASE_URL")
        self.key = (self.key or os.environ.get(KEY_VARIABLE) or "").strip() or None  # a file's key ends in a line feed
        if self.base_url is not None:
            check_url(self.base_url, name)
        if taken := {"model", "messages"} & self.body.keys():
            raise InputError(f"body: found '{min(taken)}', expected further fields of a request")
        if self.base_url is None and not self.key:
            raise InputError(f"found no {KEY_VARIABLE} in the environment, expected a key or the URL of a local server")

    @cached_property
    def client(self) -> openai.OpenAI:
        import openai  # takes a second

        how: dict[str, Any] = {"timeout": self.timeout, "max_retries": self.retries}
        with loading(self.base_url or "OpenAI", "connection"):  # the environment may name a proxy of an unknown kind
            return openai.OpenAI(api_key=self.key or "none", base_url=self.base_url, **how)

    def ask(self, conversation: AnyPrompt, *, attempt: int = 0, **sampling: Any) -> Completion:
        """One completion, from the cache or by a call. The reply to a call is stored in the cache at once.

        Args:
            attempt: a part of the key in the cache. Another number asks for another reply to the same request.
            sampling: temperature, seed or max_tokens in place of the endpoint's own; None leaves those.

        Raises:
            InputError: every call would fail: no server, a wrong key, no such model; or a cost limit and a server that
                does not count tokens.
        """
        fields: dict[str, Any] = {"model": self.model, "messages": Prompt.of(conversation).as_messages()}
        fields |= {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        fields |= {name: value for name, value in sampling.items() if value is not None}
        body = {name: value for name, value in {**fields, **self.body}.items() if value is not None}
        request = {"base_url": str(self.client.base_url), "attempt": attempt, "body": body}
        raw = self.cache.get(request) if self.cache is not None else None
        with self._lock:
            if raw is not None:
                self.hits += 1
                return read_completion(raw, self.price)
            if self.given_up is not None:
                raise self.given_up
            if self.max_cost is not None and self.spent >= self.max_cost:
                return Completion(failure=NOT_ASKED)
        raw, failure = self._call(body)
        completion = read_completion(raw, self.price) if not failure else Completion(failure=failure)
        if completion.failure and not (completion.input_tokens or completion.output_tokens):
            return completion
        # A reply that cannot be read is stored and counted too, because it was paid for.
        if self.cache is not None:
            try:
                self.cache.put(request, raw)
            except InputError as error:
                self.given_up = error  # a reply that cannot be kept must not be paid for
                raise
        with self._lock:
            self.calls += 1
            self.spent += completion.cost
        if self.max_cost is not None and completion.input_tokens == 0:
            raise self._give_up("the server does not count tokens, so no cost limit can be kept")
        return completion

    def complete(
        self, conversations: Sequence[AnyPrompt], *, attempt: int = 0, advance: Advance | None = None
    ) -> list[Completion]:
        """One completion per conversation, in their order, as by :meth:`ask`. Equal conversations are asked once.

        A completion that fails leaves the others alone. Replies that arrived before an InputError are in the cache.
        """
        places: dict[Prompt, list[int]] = {}
        for index, conversation in enumerate(conversations):
            places.setdefault(Prompt.of(conversation), []).append(index)
        done = [Completion()] * len(conversations)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        try:
            asked = {pool.submit(self.ask, prompt, attempt=attempt): own for prompt, own in places.items()}
            for future in as_completed(asked):
                first, *others = asked[future]
                done[first] = future.result()
                for other in others:
                    done[other] = replace(done[first], cost=0.0)
                if advance is not None and done[first].failure != NOT_ASKED:
                    advance(1 + len(others))
        finally:
            pool.shutdown(cancel_futures=True)  # waits for the calls under way, which are kept
        return done

    def _call(self, body: Mapping[str, Any]) -> tuple[str, str]:
        """The raw response and an empty reason, or an empty response and the reason why there is none.

        Raises:
            InputError: every call would fail.
        """
        import openai

        create = self.client.chat.completions.with_raw_response.create
        try:
            response = create(model=body["model"], messages=body["messages"], extra_body=dict(body))
            return response.content.decode(errors="replace"), ""  # JSON is UTF-8, whatever the header says
        except openai.OpenAIError as error:
            if isinstance(error, openai.AuthenticationError | openai.NotFoundError):
                raise self._give_up(f"model '{self.model}': {_words(error)}") from error
            # Compared by name, because another major version of openai's client used another HTTP library.
            if type(error.__cause__).__name__ == "ConnectError":  # also later: no row fails for good in an outage
                raise self._give_up(f"found no server there ({error.__cause__})") from error
            return "", _words(error)

    def _give_up(self, reason: str) -> InputError:
        """The error that every further call raises, also a call that waits in a queue."""
        self.given_up = InputError(f"{self.client.base_url}: {reason}")
        return self.given_up


def check_url(url: str, name: str) -> None:
    """Raise InputError unless ``url``, the value of the setting ``name``, can be the address of a server."""
    try:
        TypeAdapter(HttpUrl).validate_python(url)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise InputError(f"{name}: found {url!r}, expected a URL such as https://api.example.com/v1 ({why})") from error


def _words(error: Exception) -> str:
    cause = f": {error.__cause__}" if error.__cause__ is not None and str(error.__cause__) else ""
    return one_line(f"{type(error).__name__}: {error}{cause}"[:500])


def _tokens(count: Any) -> int:
    """A server's count of tokens; 0 for anything that is no such count."""
    return int(count) if isinstance(count, int | float) and 0 < count < 1e12 else 0


def read_completion(raw: str, price: Price | None) -> Completion:
    """The completion in a raw response. A pure function.

    If the response is no chat completion, ``failure`` says so; the tokens and the cost are counted all the same. If
    the text comes in parts, the parts are joined.
    """
    unreadable = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
    given = made = cached = 0
    text, finish, failure = "", "", f"no chat completion in the response: {raw[:80]!r}"
    with suppress(*unreadable):
        response = json.loads(raw)
        with suppress(*unreadable):
            usage = response["usage"]
            given, made = _tokens(usage.get("prompt_tokens")), _tokens(usage.get("completion_tokens"))
            cached = min(given, _tokens(usage["prompt_tokens_details"]["cached_tokens"]))
        choice = response["choices"][0]
        content = choice["message"].get("content") or ""
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        text = text.encode(errors="replace").decode()  # no file can hold half a character
        finish, failure = str(choice.get("finish_reason") or ""), ""
    cost = price.cost(given, cached, made) if price is not None else 0.0
    return Completion(text, finish, failure, given, cached, made, cost)
