"""The endpoint against a scripted server: order, retries, failures, cost, and that no call is paid twice."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
import time

import pytest
from scripted_endpoint import CutOff, Fail, Nonsense, Say, ScriptedEndpoint, Stall, in_turn

from pitlm.core.errors import InputError
from pitlm.core.nouns import Message, Prompt
from pitlm.engines.endpoint import ChatEndpoint, Completion, Price, read_completion
from pitlm.engines.reply_cache import ReplyCache

PRICE = Price(2.0, 1.0, 10.0)


def echo(request):
    return Say("re: " + request["messages"][-1]["content"], input_tokens=100, cached_tokens=40, output_tokens=10)


def prompts(count):
    return [Prompt.of(f"question {index}") for index in range(count)]


@pytest.fixture
def server():
    with ScriptedEndpoint(echo) as server:
        yield server


@pytest.fixture
def endpoint(server):
    def make(**kwargs):
        return ChatEndpoint("m", server.base_url, **kwargs)

    return make


def test_replies_come_in_order_with_their_tokens_and_cost(server, endpoint):
    moved = []
    chat = endpoint(price=PRICE, concurrency=3)
    done = chat.complete(prompts(7), advance=moved.append)
    assert [c.text for c in done] == [f"re: question {index}" for index in range(7)]
    assert {(c.input_tokens, c.cached_tokens, c.output_tokens, c.finish, c.failure) for c in done} == {
        (100, 40, 10, "stop", "")
    }
    # by hand: (60 x 2 + 40 x 1 + 10 x 10) / 1e6
    assert done[0].cost == pytest.approx(260e-6)
    assert chat.spent == pytest.approx(7 * 260e-6)
    assert (chat.calls, chat.hits, sum(moved)) == (7, 0, 7)
    assert 1 <= server.most_at_once <= 3


def test_the_request_is_what_was_set_and_nothing_else(server, endpoint):
    conversation = Prompt(
        (Message("system", "s"), Message("user", "u"), Message("assistant", "a"), Message("user", "v"))
    )
    endpoint(temperature=0.0, max_tokens=5, seed=3, body={"top_p": 0.5, "seed": None}).complete([conversation])
    messages = conversation.as_messages()
    endpoint(temperature=1.0).ask(messages, temperature=0.0, seed=7)
    endpoint().complete([conversation])
    full, own, bare = (call.request for call in server.calls)
    assert own == {"model": "m", "messages": messages, "temperature": 0.0, "seed": 7}
    assert full == {"model": "m", "messages": messages, "temperature": 0.0, "max_tokens": 5, "top_p": 0.5}
    assert bare == {"model": "m", "messages": messages}


def test_the_key_comes_from_the_environment_and_a_local_server_needs_none(server, endpoint, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint().complete(prompts(1))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    endpoint().complete(prompts(1))
    assert [call.headers["authorization"] for call in server.calls] == ["Bearer none", "Bearer sk-test"]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        ChatEndpoint("m")


def test_retry_after_is_honoured(server, endpoint):
    server.reply = in_turn([Fail(429, retry_after=0.3), Fail(503, retry_after=0.01)], then="done")
    (done,) = endpoint().complete(prompts(1))
    assert (done.text, done.failure, len(server.calls)) == ("done", "", 3)
    first, second, _ = (call.arrived for call in server.calls)
    assert second - first >= 0.3  # the wait that the server asked for; it measures no speed


def test_a_failure_is_its_own_item_s(server, endpoint):
    def reply(request):
        number = int(request["messages"][-1]["content"].split()[-1])
        return {1: Fail(400, message="too long"), 2: CutOff(), 3: Nonsense(), 4: Nonsense('{"choices": []}')}.get(
            number, "ok"
        )

    server.reply = reply
    done = endpoint(retries=0).complete(prompts(6))
    assert [c.text for c in done] == ["ok", "", "", "", "", "ok"]
    assert [bool(c.failure) for c in done] == [False, True, True, True, True, False]
    assert "too long" in done[1].failure
    assert "no chat completion" in done[3].failure


def test_a_silent_server_is_given_up_on(server, endpoint):
    server.reply = in_turn([Stall()], then="late")
    (done,) = endpoint(retries=0, timeout=0.2).complete(prompts(1))
    assert "APITimeoutError" in done.failure


@pytest.mark.parametrize("status", [401, 404])
def test_what_would_fail_for_every_item_stops_at_once(status, server, endpoint):
    server.reply = lambda request: Fail(status, message="who are you")
    with pytest.raises(InputError, match="who are you"):
        endpoint(concurrency=2).complete(prompts(50))
    assert len(server.calls) <= 3


def test_no_server_is_an_input_error():
    with ScriptedEndpoint() as gone:
        address = gone.base_url
    with pytest.raises(InputError, match="no server there"):
        ChatEndpoint("m", address, retries=0).complete(prompts(3))
    with pytest.raises(InputError, match="expected a URL such as"):
        ChatEndpoint("m", "localhost:8000")


def test_nothing_is_bought_twice(server, endpoint, tmp_path):
    cache = ReplyCache(tmp_path / "deep" / "replies.sqlite")
    first = endpoint(cache=cache, price=PRICE).complete(prompts(3))
    again = endpoint(cache=ReplyCache(cache.path), price=PRICE)
    second = again.complete(prompts(4))
    assert len(server.calls) == 4
    assert server.calls[-1].request["messages"] == prompts(4)[3].as_messages()
    assert [(c.text, c.cost) for c in second[:3]] == [(c.text, c.cost) for c in first]
    assert (again.calls, again.hits) == (1, 3)
    assert again.spent == pytest.approx(260e-6)


def test_equal_requests_are_made_once_and_their_cost_counts_once(server, endpoint):
    chat = endpoint(price=PRICE)
    done = chat.complete([*prompts(2), *prompts(2)])
    assert len(server.calls) == 2
    assert [c.text for c in done[:2]] == [c.text for c in done[2:]]
    assert sum(c.cost for c in done) == pytest.approx(chat.spent)


@pytest.mark.parametrize(
    "changed", [{"temperature": 0.5}, {"max_tokens": 9}, {"seed": 1}, {"body": {"top_p": 0.5}}, {"model": "other"}]
)
def test_whatever_changes_the_reply_is_in_the_key(changed, server, endpoint, tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    plain = {"model": "m", "base_url": server.base_url, "cache": cache}
    ChatEndpoint(**plain).complete(prompts(1))
    ChatEndpoint(**{**plain, **changed}).complete(prompts(1))
    assert len(server.calls) == 2


def test_another_server_or_another_attempt_is_another_reply(server, endpoint, tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    endpoint(cache=cache).complete(prompts(1))
    endpoint(cache=cache).complete(prompts(1), attempt=1)
    with ScriptedEndpoint(lambda request: "other") as other:
        (done,) = ChatEndpoint("m", other.base_url, cache=cache).complete(prompts(1))
    assert (done.text, len(server.calls), len(cache)) == ("other", 2, 3)


def test_failures_are_not_kept(server, endpoint, tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    server.reply = in_turn([Fail(400), Nonsense()], then="ok")
    chat = endpoint(cache=cache)
    assert [chat.complete(prompts(1))[0].text for _ in range(3)] == ["", "", "ok"]


def test_the_cost_limit_stops_cleanly_and_the_next_run_goes_on(server, endpoint, tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    chat = endpoint(cache=cache, price=PRICE, max_cost=3 * 260e-6, concurrency=2)
    done = chat.complete(prompts(10))
    bought = [c for c in done if not c.failure]
    assert 3 <= len(bought) <= 4  # one call may be in flight when the limit is reached
    assert {c.failure for c in done if c not in bought} == {"not asked: the cost limit was reached"}
    assert len(server.calls) == len(bought) == len(cache)
    onward = endpoint(cache=cache, price=PRICE)
    assert all(c.text for c in onward.complete(prompts(10)))
    assert len(server.calls) == 10


def paid(content, **usage):
    """A reply with a content of another shape, whose tokens are counted."""
    counted = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}} | usage
    return Nonsense(json.dumps({"choices": [{"message": {"content": content}}], "usage": counted}))


def test_a_text_in_parts_is_joined(server, endpoint):
    server.reply = lambda request: paid([{"type": "text", "text": "Verdict"}, {"type": "text", "text": ": A"}])
    (done,) = endpoint(price=PRICE).complete(prompts(1))
    assert (done.text, done.failure, done.cost) == ("Verdict: A", "", pytest.approx(260e-6))


@pytest.mark.parametrize("content", [3, {"a": 1}, [{"type": "refusal", "refusal": "no"}], [[]]])
def test_a_reply_that_is_not_understood_counts_and_is_kept(server, endpoint, tmp_path, content):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    server.reply = lambda request: paid(content)
    chat = endpoint(cache=cache, price=PRICE, max_cost=3 * 260e-6, concurrency=1)
    done = chat.complete(prompts(10))
    assert all(c.failure for c in done)
    assert sum("no chat completion" in c.failure for c in done) == len(server.calls) == len(cache) == 3
    assert chat.spent == pytest.approx(3 * 260e-6)


@pytest.mark.parametrize("count", [None, "many", -5, math.nan, math.inf, 1e300, [], {}])
def test_a_count_that_is_no_count_is_none(server, endpoint, count):
    server.reply = lambda request: paid("ok", completion_tokens=count, prompt_tokens_details=count)
    (done,) = endpoint(price=PRICE).complete(prompts(1))
    assert (done.text, done.input_tokens, done.output_tokens, done.cached_tokens) == ("ok", 100, 0, 0)


def test_cached_tokens_are_among_those_that_were_read(server, endpoint):
    server.reply = lambda request: paid("ok", prompt_tokens_details={"cached_tokens": 10**9})
    (done,) = endpoint(price=PRICE).complete(prompts(1))
    assert done.cached_tokens == 100
    assert done.cost > 0


def test_a_cost_limit_that_cannot_be_kept_is_refused(server, endpoint):
    with pytest.raises(InputError, match="needs a price"):
        endpoint(max_cost=1.0)
    server.reply = lambda request: Say("ok", usage=False)
    with pytest.raises(InputError, match="does not count tokens"):
        endpoint(max_cost=1.0, price=PRICE).complete(prompts(3))


def test_prices_are_read_from_words_and_files(tmp_path):
    assert Price.of("0.15,0.075,0.6") == Price(0.15, 0.075, 0.6)
    table = tmp_path / "prices.json"
    table.write_text(json.dumps({"a": [1, 2, 3], "b": {"input": 1, "cached": 2, "output": 3}}))
    assert Price.of(str(table), "a") == Price.of(str(table), "b") == Price(1, 2, 3)
    for text, model in (("1,2", ""), ("1,2,x", ""), ("1,-2,3", ""), ("nan,1,1", ""), (str(table), "c")):
        with pytest.raises(InputError):
            Price.of(text, model)


def test_a_file_that_is_no_cache_is_refused_and_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes, which are long enough to be taken for a database header " * 20)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"notes\.txt"):
        ReplyCache(path)
    assert path.read_bytes() == before


def test_what_cannot_be_kept_is_not_paid_for(server, endpoint, tmp_path, monkeypatch):
    """As on a full disk, SQLite cannot add a page to the file."""
    connect = sqlite3.connect

    def small(*arguments, **options):
        database = connect(*arguments, **options)
        database.execute("PRAGMA max_page_count = 4")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)
    cache = ReplyCache(tmp_path / "replies.sqlite")
    server.reply = lambda request: "word " * 1000
    with pytest.raises(InputError, match=r"replies\.sqlite: found database or disk is full"):
        endpoint(cache=cache, concurrency=2).complete(prompts(50))
    assert len(server.calls) <= 4


def test_half_a_character_in_a_reply_can_be_written():
    raw = '{"choices": [{"message": {"content": "a \\ud800 b"}, "finish_reason": "stop"}]}'
    assert read_completion(raw, None).text == "a ? b"


def test_a_reply_without_content_or_usage_is_an_empty_text():
    raw = json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "length"}]})
    assert read_completion(raw, PRICE) == Completion(finish="length")


def test_interrupting_keeps_what_is_under_way(server, endpoint, tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")

    def slow(request):
        time.sleep(0.05)
        return "ok"

    def interrupt(count):
        raise KeyboardInterrupt

    server.reply = slow
    with pytest.raises(KeyboardInterrupt):
        endpoint(cache=cache, concurrency=2).complete(prompts(500), advance=interrupt)
    assert len(cache) == len(server.calls) < 500


def test_processes_share_a_cache(tmp_path):
    path = tmp_path / "replies.sqlite"
    script = f"""
from concurrent.futures import ThreadPoolExecutor
from pitlm.engines.reply_cache import ReplyCache
cache = ReplyCache({str(path)!r})
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda n: cache.put({{"n": n}}, str(n)), range(40)))
"""
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(30) for process in running] == [0, 0]
    assert len(ReplyCache(path)) == 40


def test_the_scripted_server_streams_what_it_would_have_said(server, endpoint):
    client = endpoint().client
    asked = {"model": "m", "messages": [{"role": "user", "content": "a  b"}]}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "re: a  b"
    assert chunks[-1].usage == client.chat.completions.create(**asked).usage
    assert [model.id for model in client.models.list()] == ["scripted"]


def test_the_endpoint_is_light():
    script = "import sys, pitlm.engines.endpoint; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'openai')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "url", ["http://[", "http://[::1", "ftp://host/v1", "host/v1", "http://", "http://host:99999/v1", "http://a b/v1"]
)
def test_a_url_that_leads_nowhere_is_refused(url):
    with pytest.raises(InputError, match=r"base_url: found .*expected a URL such as"):
        ChatEndpoint("m", url)


def test_a_proxy_of_an_unknown_kind_is_one_message(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "nonsense://proxy")
    with pytest.raises(InputError, match="cannot load a connection: Unknown scheme for proxy"):
        ChatEndpoint("m", "http://example.com/v1").ask("p")


@pytest.mark.parametrize("field", ["model", "messages"])
def test_the_body_replaces_neither_the_model_nor_the_question(endpoint, field):
    with pytest.raises(InputError, match=f"body: found '{field}'"):
        endpoint(body={field: None})


@pytest.mark.parametrize("charset", ["utf-8", "nonsense", "idna", "utf-16", "punycode"])
def test_a_charset_that_the_server_makes_up_changes_nothing(charset):
    content = json.dumps({"choices": [{"message": {"content": "ü"}}]}, ensure_ascii=False)
    with ScriptedEndpoint(lambda request: Nonsense(content, f"application/json; charset={charset}")) as server:
        assert ChatEndpoint("m", server.base_url).ask("p").text == "ü"


def test_the_database_of_another_program_is_refused_and_kept(tmp_path):
    path = tmp_path / "bookmarks.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(InputError, match="found another program's database, expected a cache of replies"):
        ReplyCache(path)
    assert path.read_bytes() == before


def test_a_server_that_goes_away_in_the_middle_ends_the_work():
    with ScriptedEndpoint(echo) as server:
        chat = ChatEndpoint("m", server.base_url, retries=1)
        assert chat.ask("question").text == "re: question"
    del chat.client  # its connection is still served
    with pytest.raises(InputError, match="found no server there"):  # otherwise all further rows fail for good
        chat.ask("another question")


def test_the_end_of_a_line_is_no_part_of_a_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc\n")
    assert ChatEndpoint("m", server.base_url).key == "sk-abc"
